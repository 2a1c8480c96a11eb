"""MLflow runs: start or join one, and log what an experiment gives."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from matplotlib.figure import Figure
from mlflow.data.sources import LocalArtifactDatasetSource
from mlflow.entities import Run
from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL,
)

from ultrasound import NOTICE
from ultrasound.errors import InputError
from ultrasound.images.prepared import Prepared
from ultrasound.learning.fitting import EpochResult

MODEL_TAG = "model_uri"  # of a run whose model can be evaluated and registered
SCORE = "best/macro_f1"  # what ranks such runs: macro-F1 on the validation fold, at the chosen epoch
SYSTEM_METRICS_SECONDS = 5

logging.getLogger("mlflow.system_metrics.system_metrics_monitor").setLevel(logging.WARNING)


@contextmanager
def run(verb: str, name: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[str]:
    """Join the run that `mlflow run` has made, or start one; yields its id.

    The run ends as FINISHED, or as FAILED with the reason in its tag `failure`.

    Args:
        verb: the command, kept as a tag.
        name: shown in the UI's list of runs.
        parameters: logged unless `mlflow run -P` has logged them already.

    Raises:
        InputError: the tracking store cannot hold artifacts of this process.
    """
    if not MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.defined:
        mlflow.set_system_metrics_sampling_interval(SYSTEM_METRICS_SECONDS)
    with mlflow.start_run(run_name=name, log_system_metrics=True) as active, _reason_of_failure():
        _describe(active.info.run_id, verb, parameters, tags)
        _require_artifact_store(active.info.artifact_uri)
        yield active.info.run_id


@contextmanager
def child(verb: str, name: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[str]:
    """Start a child of the active run; yields its id. Ends as `run` does."""
    with mlflow.start_run(run_name=name, nested=True) as active, _reason_of_failure():
        _describe(active.info.run_id, verb, parameters, tags)
        yield active.info.run_id


def log_epoch(result: EpochResult) -> None:
    """Log one epoch's metrics under `train/` and `validation/`, the epoch as step."""
    metrics = {f"train/{name}": value for name, value in result.train.items()}
    metrics |= {f"validation/{name}": value for name, value in result.validation.items()}
    metrics |= {"train/learning_rate": result.learning_rate, "train/images_per_second": result.images_per_second}
    mlflow.log_metrics(metrics, step=result.epoch)


def log_metrics(metrics: Mapping[str, float], prefix: str) -> None:
    """Log final values as `prefix/name`; the undefined ones (NaN) go into the tag `undefined_metrics` instead."""
    named = {f"{prefix}/{name}": value for name, value in metrics.items()}
    mlflow.log_metrics({name: value for name, value in named.items() if value == value})
    if undefined := [name for name, value in named.items() if value != value]:
        mlflow.set_tag("undefined_metrics", ", ".join(undefined))


def log_figure(figure: Figure, name: str) -> None:
    """Save a figure among the run's artifacts as figures/NAME.png."""
    mlflow.log_figure(figure, f"figures/{name}.png", save_kwargs={"dpi": 150})


def log_parameters(values: Mapping[str, Any]) -> None:
    """Log further parameters of the active run."""
    mlflow.log_params(dict(values))


def log_text(text: str, name: str) -> None:
    """Save a text among the run's artifacts."""
    mlflow.log_text(text, name)


def log_table(table: pd.DataFrame, name: str) -> None:
    """Save a table among the run's artifacts as tables/NAME.csv."""
    mlflow.log_text(table.to_csv(index=False), f"tables/{name}.csv")


def log_report(content: Mapping[str, Any], name: str) -> None:
    """Save values among the run's artifacts as NAME.json."""
    mlflow.log_dict(dict(content), f"{name}.json")


def log_dataset(prepared: Prepared, rows: Any, name: str, context: str) -> None:
    """Log which images a run used: `context` is training, validation or test."""
    samples = prepared.samples.iloc[rows][["image_id", "label"]].reset_index(drop=True)
    source = LocalArtifactDatasetSource("build/prepared/samples.csv")
    digest = f"{prepared.data_digest}-{prepared.split_digest}"
    # MLflow keeps one data set of each name and digest a run, so the context is part of the name.
    data = mlflow.data.from_pandas(samples, source=source, targets="label", name=f"{name}-{context}", digest=digest)
    mlflow.log_input(data, context=context)


def log_file(file: Path) -> None:
    """Save a file among the run's artifacts, under its name."""
    mlflow.log_artifact(str(file))


def tag(**tags: str) -> None:
    """Set tags of the active run."""
    mlflow.set_tags(tags)


def find(which: str, tags: Mapping[str, str]) -> Run:
    """Find a run that has a model.

    Args:
        which: `best` (highest `SCORE`), `latest`, or a run id.
        tags: what the run must carry. With the digests of data and split, no model is found that may have been
            trained on images that are test images today.

    Raises:
        InputError: there is no such run, it has no model, or it does not carry the tags.
    """
    if which not in ("best", "latest"):
        try:
            found = mlflow.get_run(which)
        except mlflow.MlflowException:
            raise InputError(f"run {which!r} does not exist in {mlflow.get_tracking_uri()}") from None
        if MODEL_TAG not in found.data.tags:
            raise InputError(f"run {which} has no model: it is no finished run of train or of a trial")
        if any(found.data.tags.get(name) != value for name, value in tags.items()):
            raise InputError(f"run {which} was trained on other data or another split than today's: train anew")
        return found
    wanted = [f"tags.{name} = '{value}'" for name, value in tags.items()] + [f"tags.{MODEL_TAG} LIKE '%'"]
    order = [f"metrics.`{SCORE}` DESC"] if which == "best" else []
    runs: list[Run] = mlflow.search_runs(
        filter_string=" AND ".join([*wanted, "attributes.status = 'FINISHED'"]),
        order_by=[*order, "attributes.start_time DESC"], search_all_experiments=True, max_results=1,
        output_format="list",
    )  # fmt: skip
    if not runs:
        raise InputError(
            f"no finished run with a model of today's data and split in {mlflow.get_tracking_uri()}: "
            "run `mlflow run . -e train --env-manager local` first"
        )
    return runs[0]


def check_store() -> tuple[bool, str]:
    """Whether the tracking store answers within seconds, and its address."""
    MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(1)
    MLFLOW_HTTP_REQUEST_TIMEOUT.set(5)
    try:
        mlflow.search_experiments(max_results=1)
    except Exception as error:  # a store's driver raises its own
        return False, f"{mlflow.get_tracking_uri()} does not answer ({type(error).__name__})"
    return True, str(mlflow.get_tracking_uri())


def _describe(run_id: str, verb: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    # `mlflow run -P` has logged its parameters as text; a second value of other spelling would be refused.
    known = mlflow.get_run(run_id).data.params
    mlflow.log_params({name: value for name, value in parameters.items() if name not in known})
    mlflow.set_tags({"verb": verb, "mlflow.note.content": NOTICE, **tags})


@contextmanager
def _reason_of_failure() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        mlflow.set_tag("failure", f"{type(error).__name__}: {error}"[:500])
        raise


def _require_artifact_store(uri: str | None) -> None:
    if str(uri).startswith("mlflow-artifacts:") and not mlflow.get_tracking_uri().startswith("http"):
        raise InputError(
            "this experiment was made by an MLflow server and keeps its artifacts there, but the tracking store is a "
            "local file: set MLFLOW_TRACKING_URI to the server's address, or give an experiment of its own with "
            "`mlflow run . --experiment-name NAME` (`make ui` starts the UI so that this does not happen)"
        )
