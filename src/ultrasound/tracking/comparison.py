"""Backbones under the same protocol: each trained on the same folds in a child run, compared on the same images."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ultrasound.errors import ParameterError
from ultrasound.images import splitting
from ultrasound.images.prepared import Prepared
from ultrasound.learning import backbone, costs, fitting
from ultrasound.learning import probe as probing
from ultrasound.params import flatten, override
from ultrasound.scoring import comparisons, figures, intervals, metrics
from ultrasound.scoring.intervals import Interval
from ultrasound.sections import Params
from ultrasound.tracking import folds, models, runs, training
from ultrasound.tracking.classification import CLASSIFICATION
from ultrasound.tracking.task import parameters

METRICS = ("macro_f1", "balanced_accuracy", "macro_auc")
PROBE = "probe"


class Cost(NamedTuple):
    """What a network costs.

    Attributes:
        parameters: number of weights.
        operations: floating-point operations for one image.
        latency_ms: milliseconds for one image on the CPU of this machine.
    """

    parameters: int
    operations: int
    latency_ms: float


class Compared(NamedTuple):
    """One model of a comparison.

    Attributes:
        name: as `compare.models` has it; `probe NAME` where the backbone's features are frozen.
        probabilities: (n, classes) out of fold, images in the order of the prepared data.
        scores: metric -> value with its interval.
        differences: metric -> how much higher than the first model's; empty for the first.
        p: McNemar's, against the first; NaN for it.
        by_fold: macro-F1 of each fold.
        cost: of its network.
        seconds: of training, all folds together, their validation left out.
        run_id: its run.
    """

    name: str
    probabilities: NDArray[np.float64]
    scores: dict[str, Interval]
    differences: dict[str, Interval]
    p: float
    by_fold: list[float]
    cost: Cost
    seconds: float
    run_id: str


def check(params: Params, prepared: Prepared) -> None:
    """Make every model once, so that none is refused after hours of training the others.

    Raises:
        ParameterError: a model twice, an unknown one, weights that cannot be had, or images of a size that it does not
            take.
    """
    words = params.compare.models
    if doubled := sorted({word for word in words if words.count(word) > 1}):
        raise ParameterError(f"compare.models names {', '.join(doubled)} more than once")
    for each in (_with_model(params, word) for word in words):
        model = each.model
        network = backbone.create(
            model.name, model.weights, len(params.data.classes), model.head_width, model.dropout, model.drop_path
        )
        backbone.require_size(network, prepared.preparation.size)


def compare(params: Params, prepared: Prepared, tags: Mapping[str, str], state: Path) -> list[Compared]:
    """Train every model of `compare.models` on the folds of `compare.folds`, each in a child of the active run.

    Args:
        tags: of the children.
        state: folder of the run's checkpoints.
    """
    words = params.compare.models
    found = [_trained(word, _with_model(params, word), prepared, tags, state) for word in words]
    if params.compare.probe:
        found.append(_probed(_with_model(params, words[0]), prepared, tags))
    rows = _rows(params, prepared)
    targets = training.class_numbers(params, prepared)[rows]
    groups = prepared.samples["group"].to_numpy()[rows]
    return [_against(found[0], each, targets, groups, params.compare.resamples) for each in found]


def probe(params: Params, prepared: Prepared) -> Compared:
    """Score frozen features of the backbone with a logistic regression, on the folds of the split; logs all of it.

    Raises:
        ParameterError: a model, weights or device that cannot be had.
    """
    name, size, rows = params.model.name, prepared.preparation.size, _rows(params, prepared)
    samples, targets = prepared.samples.iloc[rows], training.class_numbers(params, prepared)[rows]
    fold, groups = (samples[column].to_numpy(dtype=np.int64) for column in ("fold", "group"))
    started = time.perf_counter()
    device = fitting.accelerator(params.train).device  # seeds, before weights may be drawn
    network = backbone.create(name, params.model.weights, len(params.data.classes), 1, 0.0)
    backbone.require_size(network, size)
    features = probing.features(network.to(device), prepared.images[rows])
    probabilities = probing.out_of_fold(features, targets, fold)
    seconds = time.perf_counter() - started
    by_fold = [
        metrics.METRICS["macro_f1"].of(targets[fold == number], probabilities[fold == number])
        for number in np.unique(fold)
    ]
    active = runs.active_id()
    found = Compared(f"{PROBE} {name}", probabilities, {}, {}, np.nan, by_fold, _cost(network, size), seconds, active)
    found = _against(found, found, targets, groups, params.compare.resamples)
    runs.log_dataset(prepared, rows, params.data.source, "cross-validation")
    runs.log_metrics(metrics.score(targets, probabilities, params.data.classes), "out_of_fold")
    for end in ("low", "high"):
        runs.log_metrics({f"{metric}_{end}": getattr(score, end) for metric, score in found.scores.items()},
                         "out_of_fold")  # fmt: skip
    runs.log_metrics({**found.cost._asdict(), "training_s": seconds}, "cost")
    runs.log_table(models.predictions(samples, params.data.classes, probabilities).assign(fold=fold),
                   "predictions_out_of_fold")  # fmt: skip
    return found


def table(found: list[Compared]) -> pd.DataFrame:
    """One row a model, with intervals, differences from the first, and costs."""
    rows = []
    for each in found:
        row: dict[str, object] = {"model": each.name}
        for metric in METRICS:
            row |= {metric: each.scores[metric].value, f"{metric}_low": each.scores[metric].low,
                    f"{metric}_high": each.scores[metric].high}  # fmt: skip
        for metric, less in each.differences.items():
            row |= {f"{metric}_less_first": less.value, f"{metric}_less_first_low": less.low,
                    f"{metric}_less_first_high": less.high}  # fmt: skip
        row |= {"mcnemar_p": each.p, "macro_f1_folds_mean": np.mean(each.by_fold),
                "macro_f1_folds_sd": np.std(each.by_fold, ddof=1) if len(each.by_fold) > 1 else np.nan,
                **each.cost._asdict(), "training_s": each.seconds, "run_id": each.run_id}  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows)


def log(found: list[Compared], params: Params, prepared: Prepared) -> None:
    """Log a comparison with the active run: the table, its metrics by model, a figure of score against latency."""
    runs.log_table(table(found), "comparison")
    for each in found:
        values = {metric: score.value for metric, score in each.scores.items()}
        runs.log_metrics({**values, "latency_ms": each.cost.latency_ms}, _as_name(each.name))
    points = {each.name: (each.cost.latency_ms, each.scores["macro_f1"]) for each in found}
    runs.log_figure(figures.score_against_latency(points, prepared.preparation.size), "score_against_latency")


def _with_model(params: Params, word: str) -> Params:
    name, _, weights = word.partition("=")
    changes = {"model.name": name, "train.folds": params.compare.folds, "train.refit": False, "train.ensemble": False}
    return override(params, {**changes, "model.weights": weights or params.model.weights})


def _rows(params: Params, prepared: Prepared) -> NDArray[np.int64]:
    """Positions of the images that are predicted out of fold, in their order."""
    folds_of = prepared.samples["fold"].to_numpy()
    rows = prepared.rows(splitting.DEVELOPMENT)
    return rows[np.isin(folds_of[rows].astype(int), params.compared_folds)]


def _as_name(word: str) -> str:
    """A model as `compare.models` has it, as name of a run, a metric and a folder."""
    return re.sub(r"[^\w.-]+", "-", word)


def _trained(word: str, params: Params, prepared: Prepared, tags: Mapping[str, str], state: Path) -> Compared:
    name, size = _as_name(word), prepared.preparation.size
    shown = parameters(CLASSIFICATION, params)
    with runs.child("compared", name, shown, tags) as run_id:
        crossed = folds.cross_validate(params, prepared, state / name, with_models=False)
        # Not by the clock: a comparison that was stopped goes on in another process.
        seconds = sum(
            len(prepared.rows(splitting.DEVELOPMENT, fold, without=True)) / result.images_per_second
            for fold, trained in crossed.folds.items()
            for result in trained.history
        )
        network = backbone.create(
            params.model.name, "none", len(params.data.classes), params.model.head_width, params.model.dropout,
            params.model.drop_path,
        )  # fmt: skip
        cost = _cost(network, size)
        runs.log_metrics({**cost._asdict(), "training_s": seconds}, "cost")
    by_fold = [values["macro_f1"] for values in crossed.values.values()]
    return Compared(word, crossed.probabilities, {}, {}, np.nan, by_fold, cost, seconds, run_id)


def _probed(params: Params, prepared: Prepared, tags: Mapping[str, str]) -> Compared:
    with runs.child("probe", f"{PROBE}-{params.model.name}", flatten(params, ("model",)), tags):
        return probe(params, prepared)


def _cost(network: backbone.Network, size: int) -> Cost:
    return Cost(costs.parameters(network), costs.operations(network, size), costs.latency(network, size) * 1e3)


def _against(
    first: Compared, each: Compared, targets: NDArray[np.int64], groups: NDArray[np.int64], resamples: int
) -> Compared:
    drawn = intervals.bootstrap(
        {metric: intervals.mean_of(metric, targets, [each.probabilities]) for metric in METRICS},
        groups, resamples, comparisons.SEED,
    )  # fmt: skip
    scores = {metric: intervals.interval(values) for metric, values in drawn.items()}
    if each is first:
        return each._replace(scores=scores)
    differences = {
        metric: comparisons.difference(metric, targets, [first.probabilities], [each.probabilities], groups, resamples)
        for metric in METRICS
    }
    p = comparisons.mcnemar(targets, first.probabilities, each.probabilities)
    return each._replace(scores=scores, differences=differences, p=p)
