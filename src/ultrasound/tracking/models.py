"""A classifier as an MLflow model: logged beside its run, loaded back, scored once on the locked test set."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import tempfile
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, Schema
from numpy.typing import NDArray

from ultrasound.errors import InputError
from ultrasound.images import splitting
from ultrasound.images.prepared import Prepared
from ultrasound.images.sources import phantom
from ultrasound.learning import classifier
from ultrasound.learning.classifier import Classifier
from ultrasound.scoring import figures, metrics
from ultrasound.tracking import runs, store

PACKAGE = Path(__file__).parents[1]
REPORT = "evaluation"
# What the served model imports; pinned in the model to the versions that made it.
REQUIREMENTS = (
    "mlflow", "torch", "torchvision", "timm", "huggingface-hub", "numpy", "pandas", "pillow", "psutil", "pyyaml",
    "requests", "safetensors",
)  # fmt: skip


class Evaluation(NamedTuple):
    """Scores of one model on the locked test set.

    Attributes:
        metrics: name -> value.
        confusion: (classes, classes) counts, true classes in rows.
        labels: class names.
        run_id: the run that holds them.
    """

    metrics: dict[str, float]
    confusion: NDArray[np.int64]
    labels: tuple[str, ...]
    run_id: str


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


def evaluate(model_uri: str, prepared: Prepared, catalog: pd.DataFrame) -> Evaluation:
    """Score a model on the locked test set and log all of it with the active run.

    Args:
        catalog: where the images lie, for a model whose preparation differs from the prepared arrays'.

    Raises:
        InputError: the model knows other classes than the data.
    """
    model = load(model_uri)
    rows = prepared.rows(splitting.TEST)
    samples = prepared.samples.iloc[rows]
    if unknown := set(samples["label"]) - set(model.labels):
        raise InputError(f"{model_uri} knows {', '.join(model.labels)}, but the test set holds {', '.join(unknown)}")
    if model.preparation == prepared.preparation:
        images = prepared.images[rows]
    else:
        files = catalog.set_index("image_id").loc[samples["image_id"], "image"]
        images = np.stack([model.preparation.image(Path(file), file) for file in files])
    targets = samples["label"].map(model.labels.index).to_numpy(dtype=np.int64)
    probabilities = model.probabilities(images)
    values = metrics.score(targets, probabilities, model.labels)
    confusion = metrics.confusion(targets, probabilities)
    runs.log_dataset(prepared, rows, "locked", "test")
    runs.log_metrics(values, "test")
    runs.log_figure(
        figures.confusion_matrix(confusion, model.labels, f"locked test set, {len(rows)} images"), "confusion_test"
    )
    runs.log_table(predictions(samples, model.labels, probabilities), "predictions_test")
    report = {"model_uri": model_uri, "images": len(rows), "metrics": values, "labels": list(model.labels),
              "confusion": confusion.tolist(), "data_digest": prepared.data_digest,
              "split_digest": prepared.split_digest}  # fmt: skip
    runs.log_report(report, REPORT)
    runs.tag(evaluated_model=model_uri)
    active = mlflow.active_run()
    assert active is not None  # logging above would have failed
    return Evaluation(values, confusion, model.labels, active.info.run_id)


def evaluated(model_uri: str, prepared: Prepared) -> Evaluation | None:
    """The evaluation of a model on the same data and split from an earlier run, if there is one."""
    found = mlflow.search_runs(
        filter_string=f"tags.evaluated_model = '{model_uri}' AND tags.data_digest = '{prepared.data_digest}' "
        f"AND tags.split_digest = '{prepared.split_digest}' AND attributes.status = 'FINISHED'",
        search_all_experiments=True, max_results=1, output_format="list",
    )  # fmt: skip
    if not found:
        return None
    run_id = found[0].info.run_id
    report = mlflow.artifacts.load_dict(f"runs:/{run_id}/{REPORT}.json")
    return Evaluation(report["metrics"], np.array(report["confusion"]), tuple(report["labels"]), run_id)


def predictions(samples: pd.DataFrame, labels: tuple[str, ...], probabilities: NDArray[np.float64]) -> pd.DataFrame:
    """One row an image: id, true label, predicted label, a probability a class."""
    table = samples[["image_id", "label", "group"]].reset_index(drop=True)
    table["predicted"] = [labels[number] for number in probabilities.argmax(1)]
    return table.assign(**{f"p_{label}": probabilities[:, number] for number, label in enumerate(labels)})
