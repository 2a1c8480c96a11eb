"""The model card, rendered from the run that trained a model and the evaluation of it."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from jinja2 import Environment, StrictUndefined
from mlflow.entities import Run

from ultrasound import NOTICE
from ultrasound.images import splitting
from ultrasound.images.prepared import Prepared
from ultrasound.images.sources import description
from ultrasound.scoring import metrics
from ultrasound.scoring.intervals import Interval
from ultrasound.tracking import runs

TEMPLATE = Path(__file__).with_suffix(".md")
MAIN = (
    "macro_f1", "balanced_accuracy", "accuracy", "macro_auc", "operating_sensitivity", "operating_specificity", "ece",
    "brier", "abstained", "answered_accuracy",
)  # fmt: skip


def render(
    name: str, source: str, prepared: Prepared, trained: Run, content: Mapping[str, Any],
    scores: Mapping[str, Interval], slices: pd.DataFrame,
) -> str:  # fmt: skip
    """Write the card.

    Args:
        name: of the model.
        source: of the images.
        trained: the run that trained it; the active run holds its evaluation.
        content: what evaluation.json holds.
        scores: name -> score with its interval.
        slices: a row a slice.

    Returns:
        Markdown.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)  # noqa: S701
    environment.filters |= {"score": str, "title": metrics.title}
    environment.filters["of"] = lambda row, key: str(Interval(row[key], row[f"{key}_low"], row[f"{key}_high"]))
    samples = prepared.samples
    excluded = ~samples["split"].isin([splitting.TEST, splitting.DEVELOPMENT])
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=name, notice=NOTICE, trained=trained, evaluated=runs.active_id(), params=trained.data.params,
        tags=trained.data.tags, date=_date(trained), members=_members(trained), size=prepared.preparation.size,
        labels=content["labels"], positive=content["calibration"]["positive"], calibration=content["calibration"],
        description=description(source), content=content, scores=scores, main=MAIN,
        slices=slices.to_dict("records"), looks=_looks(content), out_of_fold=_out_of_fold(trained),
        counts={
            "development": _counts(samples[samples["split"] == splitting.DEVELOPMENT]),
            "test": _counts(samples[samples["split"] == splitting.TEST]), "excluded": int(excluded.sum()),
        },
    )  # fmt: skip


def _counts(samples: pd.DataFrame) -> dict[str, Any]:
    classes = ", ".join(f"{count} {label}" for label, count in samples["label"].value_counts().items())
    return {"images": len(samples), "groups": samples["group"].nunique(), "classes": classes}


def _members(trained: Run) -> str:
    params = trained.data.params
    if params["train.folds"].isdigit():
        return f"one network, trained on all folds but {params['train.folds']}"
    if params["train.ensemble"] == "True":
        return "the mean of the networks of the folds"
    return "one network, trained on all development images"


def _date(trained: Run) -> str:
    return datetime.datetime.fromtimestamp(trained.info.start_time / 1000, datetime.UTC).date().isoformat()


def _looks(content: Mapping[str, Any]) -> int:
    """How many evaluations have looked at the same test set."""
    on = " AND ".join(f"tags.{key} = '{digest}'" for key, digest in content["evaluated_on"].items())
    found = mlflow.search_runs(
        filter_string=f"tags.evaluated_model LIKE '%' AND {on}", search_all_experiments=True, output_format="list"
    )
    return len(found) + 1  # this one carries its tag when it has ended


def _out_of_fold(trained: Run) -> str:
    values = trained.data.metrics
    if "out_of_fold/macro_f1" not in values:
        return ""
    return str(Interval(*(values.get(f"out_of_fold/macro_f1{end}", math.nan) for end in ("", "_low", "_high"))))
