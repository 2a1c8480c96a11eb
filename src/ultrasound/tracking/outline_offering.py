"""From a run with a segmenter to a version in the registry: scored on the locked test set, judged, made champion."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from ultrasound.errors import InputError, signals_wait
from ultrasound.images import splitting
from ultrasound.images.prepared import Prepared
from ultrasound.scoring import outlines, report
from ultrasound.scoring.intervals import Interval
from ultrasound.sections import Params
from ultrasound.tracking import (
    card,
    evaluation,
    gate,
    models,
    provenance,
    registry,
    reporting,
    runs,
    segmentation,
    store,
    testing,
)
from ultrasound.tracking.gate import Verdict

TABLE = "outlines_test"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of one segmenter on the locked test set.

    Attributes:
        table: a row an image, with its id and group, of `outlines.per_image`.
        run_id: the run that holds it.
        resamples: of the intervals.
    """

    table: pd.DataFrame
    run_id: str
    resamples: int

    @functools.cached_property
    def scores(self) -> dict[str, Interval]:
        """Metric -> value with its 95 % interval."""
        return outlines.scores(self.table, self.table["group"].to_numpy(dtype=np.int64), self.resamples)


class Offered(NamedTuple):
    """What became of a run's segmenter: its version, that on the locked test set, and whether it is champion."""

    version: ModelVersion
    evaluation: Evaluation
    verdict: Verdict


def evaluate(model_uri: str, prepared: Prepared, catalog: pd.DataFrame, params: Params, trained: Run) -> Evaluation:
    """Score a segmenter on the test images with a known outline, and log all of it, page and card, with the active run.

    Args:
        catalog: of all images, with their annotations.
        trained: the run that trained it.

    Raises:
        InputError: no test image has a known outline.
    """
    rows = prepared.rows(splitting.TEST)
    rows = rows[prepared.samples["outlined"].to_numpy(dtype=np.bool_)[rows]]
    if not len(rows):
        raise InputError("no test image has a mask, so that outlines cannot be scored")
    runs.log_dataset(prepared, rows, "locked", "test")
    model = models.load_segmenter(model_uri)
    assert model.rule is not None, "what was logged has a rule"
    described = catalog.set_index("image_id", drop=False).loc[prepared.samples["image_id"].iloc[rows]]
    images, truths = testing.pixels(model.preparation, prepared, rows, described)
    founds = model.masks(images)
    table = outlines.table(truths, founds)
    samples = prepared.samples.iloc[rows]
    named, drawn = segmentation.log_images(images, samples, truths, founds, table, "test")
    resamples = params.evaluate.resamples
    scored = Evaluation(named, runs.active_id(), resamples)
    segmentation.log_scores(scored.scores, "test")
    by_slice = segmentation.log_slices(rows, table, prepared, catalog, "test", resamples)
    content = {
        "model_uri": model_uri, "images": len(named), "groups": int(named["group"].nunique()), "resamples": resamples,
        **reporting.compared(prepared, trained), "rule": dataclasses.asdict(model.rule),
        "scores": reporting.in_json(scored.scores),
    }  # fmt: skip
    runs.log_report(content, reporting.REPORT)
    page = report.outlines_page(
        f"Evaluation of {trained.info.run_name}", reporting.facts(content, trained), content, scored.scores, by_slice,
        {"outlines": drawn, **reporting.curves(trained)},
    )  # fmt: skip
    runs.log_text(page, reporting.PAGE)
    name, source = params.segment.name, params.data.source
    text = card.render_outlines(name, source, prepared, trained, content, scored.scores, by_slice)
    runs.log_text(text, evaluation.CARD)
    runs.tag(evaluated_model=model_uri)
    return scored


def offer(found: Run, params: Params, prepared: Prepared, catalog: pd.DataFrame) -> Offered:
    """Make a version of `segment.name` from a run's segmenter; it is champion if the gate says so.

    Segmenters that were scored on the same test set before are not scored again; others in a child of the active run.
    """
    registry.require_two_names(params)
    tags, name = provenance.tags(prepared), params.segment.name

    def scored(model_uri: str, trained: Run, child: str) -> Evaluation:
        if known := _known(model_uri, prepared, params.evaluate.resamples):
            return known
        with runs.child("evaluate", child, {}, tags):
            return evaluate(model_uri, prepared, catalog, params, trained)

    def scored_champion() -> tuple[ModelVersion | None, Evaluation | None]:
        standing = registry.champion(name)
        if standing is None:
            return None, None
        with registry.evaluable(standing):
            trained, uri = registry.run_of(standing), registry.model_uri(standing)
            return standing, scored(uri, trained, f"evaluate-{standing.version}")

    new = scored(found.data.tags[store.SEGMENTER_TAG], found, f"evaluate-{found.info.run_name}")
    carried = {key: found.data.tags[key] for key in (*tags, "seed")} | {"evaluation_run": new.run_id}
    scored_champion()  # it may take minutes, which is too long under the lock
    with registry.locked(), signals_wait():
        models.attach(found.data.tags[store.SEGMENTER_TAG], evaluation.card_of(new.run_id))
        version = registry.version_of(found, name, carried, store.SEGMENTER_TAG)
        before, other = scored_champion()
        if not registry.is_comparable(version, tags):
            verdict = Verdict(False, ("It was trained on other data or another split than today's.",), {})
        elif before is not None and str(before.version) == str(version.version):
            verdict = Verdict(True, ("It was champion before.",), {})
        else:
            against = f"version {before.version}" if before else ""
            if before is not None and not registry.is_comparable(before, tags):
                against += " (which was trained on other data or another split and may have learnt from these images)"
            elif before is not None and _prepared_otherwise(found, registry.run_of(before)):
                against += " (whose Dice is of other pixels: it prepares the images otherwise)"
            gain = _gain(new, other) if other is not None else None
            scores = {metric: score.value for metric, score in new.scores.items()}
            verdict = gate.judge_outlines(scores, params.segment, against, gain)
        registry.settle(version, verdict, before)
    runs.tag(registered_version=f"{version.name}/{version.version}", verdict=verdict.reason)
    return Offered(version, new, verdict)


def _known(model_uri: str, prepared: Prepared, resamples: int) -> Evaluation | None:
    """The evaluation of a segmenter on the same data and split from an earlier run, if there is one."""
    run_id = store.evaluation_of(model_uri, prepared.data_digest, prepared.split_digest)
    if run_id is None or not store.has(run_id, evaluation.CARD):  # of an older version of this project
        return None
    table = pd.read_csv(Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/tables/{TABLE}.csv")))
    return Evaluation(table, run_id, resamples)


def _prepared_otherwise(one: Run, other: Run) -> bool:
    """Whether two runs say of the same parameter of the preparation different things; a trial says nothing."""
    mine, theirs = one.data.params, other.data.params
    return any(mine[key] != theirs[key] for key in mine.keys() & theirs.keys() if key.startswith("preprocess."))


def _gain(new: Evaluation, other: Evaluation) -> Interval:
    """How much higher the Dice over all images is, with the interval of a paired bootstrap by group."""
    before = other.table.set_index("image_id").loc[new.table["image_id"]].reset_index()
    groups = new.table["group"].to_numpy(dtype=np.int64)
    return outlines.difference(gate.OUTLINE_METRIC, [before], [new.table], groups, new.resamples)
