"""Numbers of runs in documents: what stands between `<!-- numbers: NAME -->` and `<!-- end -->` is replaced."""

from __future__ import annotations

from pathlib import Path

from mlflow.entities import Run

from ultrasound.errors import InputError
from ultrasound.scoring import metrics

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
