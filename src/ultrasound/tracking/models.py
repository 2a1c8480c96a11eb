"""A classifier or a segmenter as an MLflow model: logged beside its run, loaded back."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import DataType, ParamSchema, ParamSpec
from mlflow.types.schema import Array, ColSpec, Schema
from numpy.typing import NDArray

from ultrasound.images.sources import phantom
from ultrasound.inference import manifest, outliner, predictor
from ultrasound.learning import classifier, segmenter
from ultrasound.learning.classifier import Classifier
from ultrasound.learning.export import export, export_outlines
from ultrasound.learning.segmenter import Segmenter
from ultrasound.tracking import runs, store

PACKAGE = Path(__file__).parents[1]
# What the served model imports; pinned in the model to the versions that made it. Torch is not among them.
REQUIREMENTS = (
    "mlflow", "numpy", "onnxruntime", "opencv-python-headless", "pandas", "pillow", "pybase64", "pydicom", "pyyaml",
    "scipy",
)  # fmt: skip
TYPES = {
    "string": DataType.string, "double": DataType.double, "boolean": DataType.boolean,
    "long": DataType.long, "strings": Array(DataType.string),
}  # fmt: skip
OPTIONAL = (*outliner.MEASURES, "heat_map")  # of the columns of an answer
EXAMPLE = "serving_input_example.json"  # where MLflow keeps it


@runs.unless_muted
def log(model: Classifier) -> None:
    """Log a classifier with the active run as a servable model without pickle.

    Its address and the digest of the list of its files become tags.

    Raises:
        InputError: its network cannot be written as a graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "classifier")
        model.save(saved)
        with_heat = export(model.network, model.preparation.size, saved)
        outputs = {**predictor.columns(model.labels, model.calibrated.positive), "heat_map": "string"}
        address, digest = _log(saved, outputs, ParamSchema([ParamSpec("explain", DataType.boolean, False)]))
    tags = {store.MODEL_TAG: address, store.MANIFEST_TAG: digest}
    runs.tag(**tags, heat_maps="served" if with_heat else "not served: this backbone's cannot be written as a graph")


@runs.unless_muted
def log_segmenter(model: Segmenter) -> None:
    """Log a segmenter, as `log` does a classifier.

    Raises:
        InputError: its network cannot be written as a graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "segmenter")
        model.save(saved)
        export_outlines(model.network, model.preparation.size, saved)
        address, digest = _log(saved, outliner.columns(), None)
    runs.tag(**{store.SEGMENTER_TAG: address, store.MANIFEST_TAG: digest})


def _log(saved: Path, outputs: Mapping[str, str], parameters: ParamSchema | None) -> tuple[str, str]:
    """Log what a folder holds as a servable model; its address and the digest of the list of its files."""
    signature = ModelSignature(
        Schema([ColSpec("string", "image")]),
        Schema([ColSpec(TYPES[kind], name, required=name not in OPTIONAL) for name, kind in outputs.items()]),
        parameters,
    )
    info = mlflow.pyfunc.log_model(
        name="model",
        python_model=str(PACKAGE / "tracking" / "serving_model.py"),
        artifacts={saved.name: str(saved)},
        code_paths=[str(PACKAGE)],
        pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS],
        signature=signature,
    )
    # MLflow would try an example on the model at once, which is not complete before its files are listed.
    _attach(info.model_uri, saved.with_name(EXAMPLE), _example())
    listed = manifest.make(Path(mlflow.artifacts.download_artifacts(info.model_uri)))
    _attach(info.model_uri, saved.with_name(manifest.FILE), listed)
    return info.model_uri, manifest.digest(listed)


def load(model_uri: str) -> Classifier:
    """Load the classifier inside a logged or registered model."""
    return classifier.load(Path(mlflow.artifacts.download_artifacts(model_uri), "artifacts", "classifier"))


def load_segmenter(model_uri: str) -> Segmenter:
    """Load the segmenter inside a logged or registered model."""
    return segmenter.load(Path(mlflow.artifacts.download_artifacts(model_uri), "artifacts", "segmenter"))


def attach(model_uri: str, file: Path) -> None:
    """Save a file beside a logged model; it is part of every version that is made of it."""
    mlflow.MlflowClient().log_model_artifact(model_uri.removeprefix("models:/"), str(file))


def predictions(samples: pd.DataFrame, labels: tuple[str, ...], probabilities: NDArray[np.float64]) -> pd.DataFrame:
    """One row an image: id, true label, predicted label, a probability a class."""
    table = samples[["image_id", "label", "group"]].reset_index(drop=True)
    table["predicted"] = [labels[number] for number in probabilities.argmax(1)]
    return table.assign(**{f"p_{label}": probabilities[:, number] for number, label in enumerate(labels)})


def _example() -> str:
    """A request that the model answers; of a phantom, for no patient's image travels with a model."""
    image, _ = phantom.phantom("benign", 1, 0)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    return json.dumps({"dataframe_split": {"columns": ["image"], "data": [[text]]}})


def _attach(model_uri: str, file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    attach(model_uri, file)
