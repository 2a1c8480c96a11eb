"""A classifier as an MLflow model: logged beside its run, loaded back."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, Schema
from numpy.typing import NDArray

from ultrasound.images.sources import phantom
from ultrasound.learning import classifier
from ultrasound.learning.classifier import Classifier
from ultrasound.tracking import runs, store

PACKAGE = Path(__file__).parents[1]
# What the served model imports; pinned in the model to the versions that made it.
REQUIREMENTS = (
    "mlflow", "torch", "torchvision", "timm", "huggingface-hub", "numpy", "pandas", "pillow", "psutil", "pyyaml",
    "requests", "safetensors",
)  # fmt: skip


@runs.unless_muted
def log(model: Classifier) -> None:
    """Log a classifier with the active run as a servable model without pickle; its address becomes a tag."""
    example, _ = phantom.phantom("benign", 1, 0)  # no patient's image travels with a model
    buffer = io.BytesIO()
    example.save(buffer, "PNG")
    outputs = ["label", *(f"p_{label}" for label in model.labels), "model_version", "notice"]
    signature = ModelSignature(
        Schema([ColSpec("string", "image")]),
        Schema([ColSpec("double" if name.startswith("p_") else "string", name) for name in outputs]),
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "classifier"))
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(PACKAGE / "tracking" / "serving_model.py"),
            artifacts={"classifier": str(Path(folder, "classifier"))},
            code_paths=[str(PACKAGE)],
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS],
            signature=signature,
            input_example=pd.DataFrame({"image": [base64.b64encode(buffer.getvalue()).decode()]}),
        )
    runs.tag(**{store.MODEL_TAG: info.model_uri})


def load(model_uri: str) -> Classifier:
    """Load the classifier inside a logged or registered model."""
    return classifier.load(Path(mlflow.artifacts.download_artifacts(model_uri), "artifacts", "classifier"))


def attach(model_uri: str, file: Path) -> None:
    """Save a file beside a logged model; it is part of every version that is made of it."""
    mlflow.MlflowClient().log_model_artifact(model_uri.removeprefix("models:/"), str(file))


def predictions(samples: pd.DataFrame, labels: tuple[str, ...], probabilities: NDArray[np.float64]) -> pd.DataFrame:
    """One row an image: id, true label, predicted label, a probability a class."""
    table = samples[["image_id", "label", "group"]].reset_index(drop=True)
    table["predicted"] = [labels[number] for number in probabilities.argmax(1)]
    return table.assign(**{f"p_{label}": probabilities[:, number] for number, label in enumerate(labels)})
