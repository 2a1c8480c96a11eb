"""The metrics of `metrics` for many resamples at once: a row of weights says how often each image was drawn.

A weight of 2 is worth two copies of the image. Every function takes class numbers (n,), probabilities (n, classes) and
weights (resamples, n), and returns (resamples,); a test holds each against scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ultrasound.scoring.metrics import CALIBRATION_BINS, Flags, Probabilities, Targets, calibration_bins

Weights = NDArray[np.float64]  # (resamples, n)
Values = NDArray[np.float64]  # (resamples,)
Of = Callable[[Targets, Probabilities, Weights], Values]
OfClass = Callable[[Flags, Flags, Probabilities, Weights], Values]


def ratio(part: Values, whole: Values, otherwise: float = 0.0) -> Values:
    """Part / whole, and `otherwise` where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(whole, otherwise), where=whole > 0)


def share(flags: Flags, among: Flags, weights: Weights) -> Values:
    """Share of the images `among` that are flagged; NaN where none was drawn."""
    return ratio(weights @ (flags & among), weights @ among.astype(np.float64), np.nan)


def mean(values: NDArray[np.float64], weights: Weights) -> Values:
    """Mean of a value an image."""
    return np.asarray(weights @ values / weights.sum(axis=1))


def _confusion(targets: Targets, probabilities: Probabilities, weights: Weights) -> Values:
    """Confusion matrices (resamples, classes, classes), true classes in rows."""
    classes = probabilities.shape[1]
    cells = np.eye(classes**2)[targets * classes + probabilities.argmax(1)]
    counts: Values = (weights @ cells).reshape(-1, classes, classes)
    return counts


def _from_confusion(of: Callable[[Values], Values]) -> Of:
    return lambda targets, probabilities, weights: of(_confusion(targets, probabilities, weights))


def _hits(counts: Values) -> Values:
    return np.diagonal(counts, axis1=1, axis2=2)


def _mcc(counts: Values) -> Values:
    total, predicted, true = counts.sum(axis=(1, 2)), counts.sum(axis=1), counts.sum(axis=2)
    right = _hits(counts).sum(axis=1) * total - (predicted * true).sum(axis=1)
    spread = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1))
    return ratio(right, np.sqrt(spread))


def _kappa(counts: Values) -> Values:
    total = counts.sum(axis=(1, 2))
    by_chance = (counts.sum(axis=1) * counts.sum(axis=2)).sum(axis=1)
    return ratio(total * _hits(counts).sum(axis=1) - by_chance, total**2 - by_chance, np.nan)


def _by_threshold(is_class: Flags, probability: Probabilities, weights: Weights) -> tuple[Values, Values]:
    """Weight of the class, and of the others, at each distinct probability from the lowest: (resamples, distinct)."""
    order = np.argsort(probability)
    begins = np.flatnonzero(np.diff(probability[order], prepend=-np.inf))  # of each run of equal values
    ordered, is_class = weights[:, order], is_class[order]
    return (np.add.reduceat(ordered * is_class, begins, axis=1), np.add.reduceat(ordered * ~is_class, begins, axis=1))


def _auc(is_class: Flags, chosen: Flags, probability: Probabilities, weights: Weights) -> Values:
    positive, negative = _by_threshold(is_class, probability, weights)
    lower = negative.cumsum(axis=1) - negative / 2  # an equal one counts half
    return ratio((positive * lower).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1), np.nan)


def _average_precision(is_class: Flags, chosen: Flags, probability: Probabilities, weights: Weights) -> Values:
    positive, negative = (part[:, ::-1] for part in _by_threshold(is_class, probability, weights))
    hits, alarms = positive.cumsum(axis=1), negative.cumsum(axis=1)
    return ratio((positive * ratio(hits, hits + alarms)).sum(axis=1), positive.sum(axis=1), np.nan)


def _over_classes(of: OfClass) -> Of:
    def macro(targets: Targets, probabilities: Probabilities, weights: Weights) -> Values:
        chosen = probabilities.argmax(1)
        single = [of(targets == c, chosen == c, probabilities[:, c], weights) for c in range(probabilities.shape[1])]
        return np.asarray(np.mean(single, axis=0))

    return macro


def _log_loss(targets: Targets, probabilities: Probabilities, weights: Weights) -> Values:
    least = np.finfo(probabilities.dtype).eps  # as scikit-learn, whose loss is finite
    of_true = probabilities[np.arange(len(targets)), targets].clip(least, 1 - least)
    return mean(-np.log(of_true), weights)


def _brier(targets: Targets, probabilities: Probabilities, weights: Weights) -> Values:
    return mean(((probabilities - np.eye(probabilities.shape[1])[targets]) ** 2).sum(axis=1), weights)


def _ece(targets: Targets, probabilities: Probabilities, weights: Weights) -> Values:
    surplus = probabilities.max(1) - (probabilities.argmax(1) == targets)
    in_bin = np.eye(CALIBRATION_BINS)[calibration_bins(probabilities)]
    return np.asarray(np.abs(weights @ (in_bin * surplus[:, None])).sum(axis=1) / weights.sum(axis=1))


def _precision(is_class: Flags, chosen: Flags, probability: Probabilities, weights: Weights) -> Values:
    return ratio(weights @ (is_class & chosen), weights @ chosen.astype(np.float64))


def _recall(is_class: Flags, chosen: Flags, probability: Probabilities, weights: Weights) -> Values:
    return ratio(weights @ (is_class & chosen), weights @ is_class.astype(np.float64))


CLASS_METRICS: dict[str, OfClass] = {
    "precision": _precision,
    "recall": _recall,
    "specificity": lambda y, chosen, p, w: _recall(~y, ~chosen, p, w),
    "f1": lambda y, chosen, p, w: ratio(
        2 * (w @ (y & chosen)), w @ y.astype(np.float64) + w @ chosen.astype(np.float64)
    ),
    "auc": _auc,
    "average_precision": _average_precision,
}

METRICS: dict[str, Of] = {
    "accuracy": lambda y, p, w: mean((p.argmax(1) == y).astype(np.float64), w),
    "balanced_accuracy": _over_classes(_recall),
    "macro_precision": _over_classes(_precision),
    "macro_recall": _over_classes(_recall),
    "macro_f1": _over_classes(CLASS_METRICS["f1"]),
    "macro_specificity": _over_classes(CLASS_METRICS["specificity"]),
    "mcc": _from_confusion(_mcc),
    "kappa": _from_confusion(_kappa),
    "macro_auc": _over_classes(_auc),
    "macro_average_precision": _over_classes(_average_precision),
    "log_loss": _log_loss,
    "brier": _brier,
    "ece": _ece,
}
