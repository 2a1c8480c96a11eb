"""The prototype diagnostic app: a page that talks HTTP to the served model."""

ADDRESS = "ULTRASOUND_SERVER"  # environment variable: address of the server
MISSING = "ULTRASOUND_MISSING"  # environment variable: why no server could be started; empty if one was
OUTLINES = "ULTRASOUND_OUTLINES"  # environment variable: address of the segmenter's server; empty without one
