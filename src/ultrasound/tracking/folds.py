"""A tracked training for each of several folds: out-of-fold predictions, and one model at the end."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ultrasound.images.prepared import Prepared
from ultrasound.learning.checkpoints import Checkpoints
from ultrasound.learning.classifier import Classifier, Ensemble
from ultrasound.params import flatten
from ultrasound.scoring import figures, intervals, metrics
from ultrasound.scoring.intervals import Interval
from ultrasound.sections import Calibrate, Params
from ultrasound.tracking import calibrating, models, runs, training
from ultrasound.tracking.training import Trained

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


def cross_validate(params: Params, prepared: Prepared, state: Path, *, with_models: bool = True) -> CrossValidation:
    """Train for each of `params.folds` in a child of the active run, then make the model; log all of it.

    Args:
        state: folder of the run's checkpoints, a folder a child.
        with_models: keep the model of every fold, where none is made of them all.
    """
    folds: dict[int, Trained] = {}
    values: dict[int, dict[str, float]] = {}
    keep = with_models and not (params.train.refit or params.train.ensemble)
    shown = flatten(params, ("model", "augment", "train"))
    for fold in params.folds:
        name = f"fold-{fold}"
        with runs.child("fold", name, {**shown, "train.folds": fold}, {"fold": str(fold)}):
            folds[fold] = training.train(params, prepared, name, fold, checkpoints=Checkpoints(state / name))
            values[fold] = training.log(folds[fold], prepared, params.calibrate if keep else None)
    model = None
    if params.train.ensemble:
        members = [trained.model.network.members[0].cpu() for trained in folds.values()]
        single = next(iter(folds.values())).model
        model = Classifier(
            Ensemble(members, flip=params.train.test_flip).eval(), single.labels, single.preparation,
            single.data_digest,
        )  # fmt: skip
    elif params.train.refit:
        epochs = round(np.mean([trained.chosen.epoch for trained in folds.values()]))
        with runs.child("refit", "refit", {**shown, "train.folds": "none"}, {"epochs": str(epochs)}):
            refitted = training.train(
                params, prepared, "refit", None, checkpoints=Checkpoints(state / "refit"), until=epochs
            )
            training.log(refitted, prepared)
        model = refitted.model
    return _log_folds(folds, values, prepared, model, params.calibrate)


def _log_folds(
    folds: dict[int, Trained], values: dict[int, dict[str, float]], prepared: Prepared, model: Classifier | None,
    settings: Calibrate,
) -> CrossValidation:  # fmt: skip
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
        models.log(calibrating.calibrate(model, targets, probabilities, settings, "predicted out of fold"))
    return crossed
