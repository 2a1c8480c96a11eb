"""The classifier's task: its network, and what is logged of a training and of several folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ultrasound.images.prepared import Prepared
from ultrasound.learning import backbone
from ultrasound.learning.backbone import Network
from ultrasound.learning.classifier import Classifier, Ensemble, predict
from ultrasound.learning.classifying import Classifying
from ultrasound.learning.loop import EpochResult
from ultrasound.scoring import comparisons, figures, intervals, metrics
from ultrasound.scoring.intervals import Interval
from ultrasound.sections import UNUSED, Params
from ultrasound.tracking import calibrating, models, runs
from ultrasound.tracking.task import Search, Task, Trained

INTERVALS = ("macro_f1", "balanced_accuracy", "accuracy", "macro_auc")
RESAMPLES, BOOTSTRAP_SEED = 2000, 0


class CrossValidation(NamedTuple):
    """A training for each of several folds.

    Attributes:
        folds: fold -> its training.
        values: fold -> metrics on its validation images, at the chosen epoch.
        pooled: metrics of the out-of-fold predictions of all folds together.
        intervals: metric -> its value with the 95 % interval of a bootstrap by group.
        rows: positions in the prepared data of the images that were predicted out of fold.
        targets: (images,) their class numbers.
        probabilities: (images, classes) out of fold.
        model: the one trained on all development images, or the mean of the folds' models; None if neither is wanted.
    """

    folds: dict[int, Trained]
    values: dict[int, dict[str, float]]
    pooled: dict[str, float]
    intervals: dict[str, Interval]
    rows: NDArray[np.int64]
    targets: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    model: Classifier | None

    @property
    def spread(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of the metrics over the folds."""
        over = {name: [values[name] for values in self.values.values()] for name in INTERVALS}
        return {
            name: (float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else np.nan)
            for name, values in over.items()
        }


def network(params: Params) -> Network:
    """The untrained network.

    Raises:
        ParameterError: an unknown model, or weights that cannot be had.
    """
    settings = params.model
    return backbone.create(
        settings.name, settings.weights, len(params.data.classes), settings.head_width, settings.dropout,
        settings.drop_path,
    )  # fmt: skip


def model(members: Sequence[nn.Module], params: Params, prepared: Prepared) -> Classifier:
    """The classifier that networks are together."""
    answering = Ensemble(members, flip=params.train.test_flip).eval()
    return Classifier(answering, params.data.classes, prepared.preparation, prepared.data_digest)


def log(trained: Trained, prepared: Prepared, params: Params | None = None) -> dict[str, float]:
    """Log what a training gave: metrics of its chosen epoch under `best/`, figures, predictions.

    Args:
        params: log the model, too, calibrated on the validation fold.
    """
    labels, chosen = trained.model.labels, trained.chosen
    curves = [(result.train, result.validation) for result in trained.history]
    runs.log_figure(figures.learning_curves(curves, chosen.epoch), "learning_curves")
    values: dict[str, float] = {}
    if len(trained.rows):
        values = metrics.score(trained.targets, chosen.probabilities, labels)
        runs.log_metrics({"epoch": chosen.epoch, "loss": chosen.validation["loss"], **values}, "best")
        counts = metrics.confusion(trained.targets, chosen.probabilities)
        title = f"validation fold, {len(trained.rows)} images, epoch {chosen.epoch}"
        runs.log_figure(figures.confusion_matrix(counts, labels, title), "confusion_validation")
        samples = prepared.samples.iloc[trained.rows]
        runs.log_table(models.predictions(samples, labels, chosen.probabilities), "predictions_validation")
        if params:
            models.log(
                calibrating.calibrate(
                    trained.model, trained.targets, chosen.probabilities, params.calibrate, "of the validation fold",
                    prepared,
                )
            )  # fmt: skip
    return values


def pool(
    folds: dict[int, Trained], values: dict[int, dict[str, float]], prepared: Prepared, model: Classifier | None,
    params: Params,
) -> CrossValidation:  # fmt: skip
    """Log what the trainings of several folds gave together: metrics out of fold, figures, predictions, the model."""
    labels = next(iter(folds.values())).model.labels
    rows, targets, probabilities, fold = (
        np.concatenate(parts)
        for parts in zip(
            *((t.rows, t.targets, t.chosen.probabilities, np.full(len(t.rows), number)) for number, t in folds.items()),
            strict=True,
        )
    )
    order = np.argsort(rows)
    rows, targets, probabilities, fold = rows[order], targets[order], probabilities[order], fold[order]
    samples = prepared.samples.iloc[rows]
    pooled = metrics.score(targets, probabilities, labels)
    drawn = intervals.bootstrap(
        {name: intervals.mean_of(name, targets, [probabilities]) for name in INTERVALS},
        samples["group"].to_numpy(), RESAMPLES, BOOTSTRAP_SEED,
    )  # fmt: skip
    found = {name: intervals.interval(drawn[name]) for name in INTERVALS}
    runs.log_metrics(pooled, "out_of_fold")
    runs.log_metrics({f"{name}_{end}": getattr(score, end) for name, score in found.items() for end in ("low", "high")},
                     "out_of_fold")  # fmt: skip
    crossed = CrossValidation(folds, values, pooled, found, rows, targets, probabilities, model)
    for name, (mean, deviation) in crossed.spread.items():
        runs.log_metrics({f"{name}_mean": mean, f"{name}_sd": deviation}, "folds")
    runs.log_metrics({"macro_f1": pooled["macro_f1"]}, "best")  # what ranks runs
    table = models.predictions(samples, labels, probabilities).assign(fold=fold)
    runs.log_table(table, "predictions_out_of_fold")
    counts = metrics.confusion(targets, probabilities)
    title = f"out of fold, {len(rows)} images, {len(folds)} folds"
    runs.log_figure(figures.confusion_matrix(counts, labels, title), "confusion_out_of_fold")
    histories = {f"fold {number}": [result.validation for result in t.history] for number, t in folds.items()}
    runs.log_figure(figures.fold_curves(histories), "fold_curves")
    if model:
        calibrated = calibrating.calibrate(
            model, targets, probabilities, params.calibrate, "predicted out of fold", prepared
        )
        models.log(calibrated)
    return crossed


def of_epoch(metric: str, targets: NDArray[np.int64], result: EpochResult) -> float:
    """A metric of the validation images of a fold."""
    return metrics.METRICS[metric].of(targets, result.probabilities)


def of_trial(metric: str, parts: Sequence[Trained], prepared: Prepared) -> float:
    """A metric out of fold; logs all metrics and the predictions."""
    targets = np.concatenate([part.targets for part in parts])
    probabilities = np.concatenate([part.chosen.probabilities for part in parts])
    labels = parts[0].model.labels
    values = metrics.score(targets, probabilities, labels)
    runs.log_metrics(values, "out_of_fold")
    samples = prepared.samples.iloc[np.concatenate([part.rows for part in parts])]
    runs.log_table(models.predictions(samples, labels, probabilities), "predictions_out_of_fold")
    return values[metric]


def gain(
    first: Sequence[CrossValidation], second: Sequence[CrossValidation], prepared: Prepared
) -> dict[str, Interval]:
    """How much higher the second score on the same images, means over the repetitions."""
    groups = prepared.samples["group"].to_numpy()[first[0].rows]
    before, after = ([crossed.probabilities for crossed in each] for each in (first, second))
    return {
        metric: comparisons.difference(metric, first[0].targets, before, after, groups, RESAMPLES)
        for metric in INTERVALS
    }


SEARCH = Search(
    {name: metric.lower_is_better for name, metric in metrics.METRICS.items()}, INTERVALS,
    UNUSED["classification"], lambda params: None, of_epoch, of_trial, gain,
)  # fmt: skip
CLASSIFICATION = Task(
    Classifying, metrics.epoch_score, network,
    lambda params: (params.train.segmentation_weight > 0, False), model, predict, log, pool, SEARCH,
)  # fmt: skip
