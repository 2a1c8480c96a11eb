"""The tracking store: whether it answers and takes artifacts, and which of its runs has the model that is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping

import mlflow
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

from ultrasound.errors import InputError

MODEL_TAG = "model_uri"  # of a run whose model can be evaluated and registered
SEGMENTER_TAG = "segmenter_uri"  # the same of a run whose model is a segmenter
MANIFEST_TAG = "manifest"  # of that run and its versions: the digest of the list of the model's files
SCORE = "best/macro_f1"  # what ranks such runs: macro-F1 on the validation fold, or out of fold, at the chosen epoch


def bare(address: str) -> str:
    """The address of a store as it may be said: without the user and the password in it."""
    return re.sub(r"//[^/@]*@", "//", address)


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
        found = get(which)
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
            f"no finished run with a model of today's data and split in {bare(mlflow.get_tracking_uri())}: "
            "run `mlflow run . -e train --env-manager local` first"
        )
    return runs[0]


def find_segmenter(which: str, tags: Mapping[str, str]) -> Run | None:
    """Find a run that has a segmenter: the latest if `which` is `segmenter`; a run id of another kind gives None.

    Args:
        tags: as of `find`.

    Raises:
        InputError: there is no segmenter, or it was trained on other data or another split.
    """
    if which == "segmenter":
        wanted = [f"tags.{name} = '{value}'" for name, value in tags.items()] + [f"tags.{SEGMENTER_TAG} LIKE '%'"]
        runs: list[Run] = mlflow.search_runs(
            filter_string=" AND ".join([*wanted, "attributes.status = 'FINISHED'"]),
            order_by=["attributes.start_time DESC"], search_all_experiments=True, max_results=1, output_format="list",
        )  # fmt: skip
        if not runs:
            raise InputError(
                f"no finished run with a segmenter of today's data and split in {bare(mlflow.get_tracking_uri())}: "
                "run `mlflow run . -e segment --env-manager local` first"
            )
        return runs[0]
    if which in ("best", "latest") or SEGMENTER_TAG not in (found := get(which)).data.tags:
        return None
    if any(found.data.tags.get(name) != value for name, value in tags.items()):
        raise InputError(f"run {which} was trained on other data or another split than today's: train anew")
    return found


def evaluation_of(model_uri: str, data_digest: str, split_digest: str) -> str | None:
    """The id of a finished run that has scored a model on the test set of this data and split, if there is one."""
    found: list[Run] = mlflow.search_runs(
        filter_string=f"tags.evaluated_model = '{model_uri}' AND tags.data_digest = '{data_digest}' "
        f"AND tags.split_digest = '{split_digest}' AND attributes.status = 'FINISHED'",
        search_all_experiments=True, max_results=1, output_format="list",
    )  # fmt: skip
    return str(found[0].info.run_id) if found else None


def has(run_id: str, name: str) -> bool:
    """Whether a run has a file of this name, not in a folder."""
    return any(file.path == name for file in mlflow.MlflowClient().list_artifacts(run_id))


def get(run_id: str) -> Run:
    """The run of an id.

    Raises:
        InputError: there is none.
    """
    try:
        return mlflow.get_run(run_id)
    except mlflow.MlflowException:
        raise InputError(f"run {run_id!r} does not exist in {bare(mlflow.get_tracking_uri())}") from None


def answers() -> tuple[bool, str]:
    """Whether the tracking store answers within seconds, and its address."""
    MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(1)
    MLFLOW_HTTP_REQUEST_TIMEOUT.set(5)
    try:
        mlflow.search_experiments(max_results=1)
    except Exception as error:  # a store's driver raises its own
        return False, f"{bare(mlflow.get_tracking_uri())} does not answer ({type(error).__name__})"
    return True, bare(mlflow.get_tracking_uri())


def require_artifacts(uri: str | None) -> None:
    """Refuse a run whose artifacts, kept at `uri`, this process could not write.

    Raises:
        InputError: an MLflow server keeps them, and the tracking store is a local file.
    """
    if str(uri).startswith("mlflow-artifacts:") and not mlflow.get_tracking_uri().startswith("http"):
        raise InputError(
            "this experiment was made by an MLflow server and keeps its artifacts there, but the tracking store is a "
            "local file: set MLFLOW_TRACKING_URI to the server's address, or give an experiment of its own with "
            "`mlflow run . --experiment-name NAME` (`make ui` starts the UI so that this does not happen)"
        )
