"""Numbers of runs in documents: what stands between `<!-- numbers: NAME -->` and `<!-- end -->` is replaced."""

from __future__ import annotations

from pathlib import Path

import mlflow
from mlflow.entities import Run

from ultrasound.errors import InputError
from ultrasound.scoring import metrics
from ultrasound.scoring.intervals import Interval

RESULTS, SCREENSHOTS = Path("docs/results.md"), Path("docs/screenshots")
METRICS = {name: metrics.title(name) for name in ("macro_f1", "balanced_accuracy", "accuracy", "macro_auc")}
END = "<!-- end -->"


def renewed(document: Path, name: str, numbers: str) -> str:
    """The text of a document with other numbers at the place of this name.

    Raises:
        InputError: the document has no such place.
    """
    before, begin, rest = document.read_text().partition(f"<!-- numbers: {name} -->\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{document} holds no place for numbers: <!-- numbers: {name} --> ... {END}")
    return f"{before}{begin}\n{numbers}\n\n{end}{after}"


def code(run: Run) -> str:
    """The commit that a run was made with, and whether files differed from it."""
    commit, _, changes = str(run.data.tags["git_commit"]).partition("+")
    return commit[:12] + (f"+{changes}" if changes else "")


def signed(difference: Interval) -> str:
    """A difference with its interval and its sign."""
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(*difference)


def finished(run_id: str, verb: str) -> Run:
    """The finished run of this id and verb.

    Raises:
        InputError: there is none.
    """
    try:
        run = mlflow.get_run(run_id)
    except mlflow.MlflowException:
        raise InputError(f"run {run_id!r} does not exist in {mlflow.get_tracking_uri()}") from None
    if run.data.tags.get("verb") != verb or run.info.status != "FINISHED":
        raise InputError(f"run {run_id} is no finished run of {verb}")
    return run


def artifact(run: Run, path: str) -> str:
    """Where an artifact of a run lies on this machine.

    Raises:
        InputError: the run has no such artifact.
    """
    try:
        return str(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/{path}"))
    except mlflow.MlflowException:
        raise InputError(f"run {run.info.run_id} holds no {path}") from None
