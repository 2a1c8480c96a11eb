"""What an answer needs once a model is trained: decoding, the graph, calibration, abstention. Runs without torch."""

import os

# ONNX Runtime 1.29 and later send usage data to its makers unless told not to; read when it is first imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
