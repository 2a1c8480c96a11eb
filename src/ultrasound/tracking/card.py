"""The model card, rendered from the run that trained a model and the evaluation of it."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from mlflow.entities import Run

from ultrasound import NOTICE
from ultrasound.images import splitting
from ultrasound.images.prepared import Prepared
from ultrasound.images.sources import description
from ultrasound.scoring import metrics, outlines
from ultrasound.scoring.intervals import Interval
from ultrasound.tracking import runs

MAIN = (
    "macro_f1", "balanced_accuracy", "accuracy", "macro_auc", "operating_sensitivity", "operating_specificity", "ece",
    "brier", "abstained", "answered_accuracy",
)  # fmt: skip


def render(
    name: str, source: str, prepared: Prepared, trained: Run, content: Mapping[str, Any],
    scores: Mapping[str, Interval], slices: pd.DataFrame,
) -> str:  # fmt: skip
    """Write the card of a classifier.

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
    return _rendered(
        "classifier_card.md", name, source, prepared, prepared.samples, trained, content, scores, slices,
        labels=content["labels"], positive=content["calibration"]["positive"], calibration=content["calibration"],
        main=MAIN, out_of_fold=_out_of_fold(trained, "macro_f1"),
    )  # fmt: skip


def render_outlines(
    name: str, source: str, prepared: Prepared, trained: Run, content: Mapping[str, Any],
    scores: Mapping[str, Interval], slices: pd.DataFrame,
) -> str:  # fmt: skip
    """Write the card of a segmenter, from the same as `render`."""
    samples = prepared.samples
    return _rendered(
        "segmenter_card.md", name, source, prepared, samples[samples["outlined"].astype(bool)], trained, content,
        scores, slices, metrics=outlines.METRICS, rule=content["rule"],
        out_of_fold=_out_of_fold(trained, "lesion_dice"),
    )  # fmt: skip


def _rendered(
    template: str, name: str, source: str, prepared: Prepared, samples: pd.DataFrame, trained: Run,
    content: Mapping[str, Any], scores: Mapping[str, Interval], slices: pd.DataFrame, **more: Any,
) -> str:  # fmt: skip
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, autoescape=False,  # noqa: S701  (Markdown)
    )  # fmt: skip
    environment.filters |= {"score": str, "title": metrics.title}
    environment.filters["of"] = lambda row, key: str(Interval(row[key], row[f"{key}_low"], row[f"{key}_high"]))
    excluded = ~samples["split"].isin([splitting.TEST, splitting.DEVELOPMENT])
    return environment.get_template(template).render(
        name=name, notice=NOTICE, trained=trained, evaluated=runs.active_id(), params=trained.data.params,
        tags=trained.data.tags, date=_date(trained), members=_members(trained), size=prepared.preparation.size,
        description=description(source), content=content, scores=scores, slices=slices.to_dict("records"),
        looks=_looks(content),
        counts={
            "development": _counts(samples[samples["split"] == splitting.DEVELOPMENT]),
            "test": _counts(samples[samples["split"] == splitting.TEST]), "excluded": int(excluded.sum()),
        },
        **more,
    )  # fmt: skip


def _counts(samples: pd.DataFrame) -> dict[str, Any]:
    classes = ", ".join(f"{count} {label}" for label, count in samples["label"].value_counts().items())
    return {"images": len(samples), "groups": samples["group"].nunique(), "classes": classes}


def _members(trained: Run) -> str:
    params = trained.data.params
    if not any(name.startswith("out_of_fold/") for name in trained.data.metrics):  # no more than one training
        return f"one network, trained on all folds but {params['train.folds'].strip('[]')}"
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


def _out_of_fold(trained: Run, metric: str) -> str:
    values = trained.data.metrics
    if f"out_of_fold/{metric}" not in values:
        return ""
    return str(Interval(*(values.get(f"out_of_fold/{metric}{end}", math.nan) for end in ("", "_low", "_high"))))
