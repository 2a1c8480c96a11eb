"""Which unfinished run a command continues, and that no two processes continue the same."""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path
from typing import NamedTuple

import mlflow

from ultrasound.errors import InputError
from ultrasound.tracking import heartbeat

HELD = "held"
TAG = "resume_key"  # of runs that the same command continues


class Resume(NamedTuple):
    """What tells that an unfinished run is of the same thing.

    Attributes:
        key: digest of all that decides what the run does.
        folder: holds, in a folder named by the id of a run, what it takes to continue it.
    """

    key: str
    folder: Path


def unfinished(resume: Resume, held: contextlib.ExitStack) -> str | None:
    """The id of the run to continue, whose folder then belongs to this process until `held` ends."""
    found = mlflow.search_runs(
        filter_string=f"tags.{TAG} = '{resume.key}' AND attributes.status != 'FINISHED'",
        order_by=["attributes.start_time DESC"], output_format="list",
    )  # fmt: skip
    for candidate in found:
        run_id = candidate.info.run_id
        if (resume.folder / run_id).is_dir() and _lock(resume.folder / run_id, held):
            print(f"continuing run {run_id} ({candidate.info.run_name}), which was left unfinished", flush=True)
            return str(run_id)
    return None


def status(run_id: str) -> str | None:
    """`HELD` while a living process works on the run, else MLflow's word for how it ended; None if there is none."""
    try:
        run = mlflow.get_run(run_id)
    except mlflow.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    if run.info.lifecycle_stage == "deleted":
        return None
    return HELD if run.info.status == "RUNNING" and heartbeat.is_alive(run.data.tags) else str(run.info.status)


def claim(resume: Resume, run_id: str, held: contextlib.ExitStack) -> None:
    """Make the folder of a new run, for this process until `held` ends."""
    if not _lock(resume.folder / run_id, held):
        raise InputError(f"another process works on run {run_id}")


def point_to(continued: str, made: str | None) -> None:
    """Make the run that `mlflow run` has made a signpost to the one that is continued; MLflow closes it itself."""
    if made and made != continued:
        client = mlflow.MlflowClient()
        client.update_run(made, name="signpost")
        note = f"Holds nothing: this command worked for run {continued}."
        # With the marks of this process, so that it is closed when that and MLflow's own are gone.
        tags = {**heartbeat.marks(), "continued_run": continued, "mlflow.note.content": note}
        for name, value in tags.items():
            client.set_tag(made, name, value)


def _lock(folder: Path, held: contextlib.ExitStack) -> bool:
    """Hold the folder of a run until `held` ends; False if another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = held.enter_context((folder / "lock").open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back by the system, whatever ends this process
    except BlockingIOError:
        return False
    return True
