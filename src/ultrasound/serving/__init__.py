"""The served model over HTTP: the model behind a guard, and predictions of whole folders."""

TOKEN = "ULTRASOUND_TOKEN"  # noqa: S105 - environment variable: the bearer token that a server asks for
