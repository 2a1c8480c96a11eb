"""Intervals of scores: a bootstrap that draws groups of near-duplicates, for single scores and paired differences.

Images of one group resemble each other, so that drawing single images would make intervals too narrow. Sources: the
percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13); whole clusters drawn
with replacement (Field and Welsh, Journal of the Royal Statistical Society B 69, 2007). No model is trained anew for a
resample: intervals tell of the images that are scored, repetitions with other seeds of the training.

A resample is a row of weights: how often each image was drawn. A statistic turns all rows into values at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ultrasound.scoring.metrics import Probabilities, Targets

Weights = NDArray[np.float64]  # (resamples, n)
Values = NDArray[np.float64]  # (resamples,)
Statistic = Callable[[Weights], Values]

PERCENTILES = (2.5, 97.5)
BLOCK = 500  # resamples at once: bounds the memory


class Interval(NamedTuple):
    """A score with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(
    statistics: Mapping[str, Statistic], groups: Sequence[int] | NDArray[np.int64], resamples: int, seed: int
) -> dict[str, Values]:
    """Draw as many groups as there are, with replacement, `resamples` times.

    Every statistic sees the same resamples: the difference of two results is a paired comparison.

    Args:
        statistics: name -> function of weights.
        groups: (n,) group of each image; groups of one draw single images.

    Returns:
        name -> (1 + resamples,): first the value on the images as they are, then one a resample.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    count = int(group.max()) + 1
    rng = np.random.default_rng(seed)
    values = {name: [statistic(np.ones((1, len(group))))] for name, statistic in statistics.items()}
    for begin in range(0, resamples, BLOCK):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(BLOCK, resamples - begin))
        weights = drawn.astype(np.float64)[:, group]
        for name, statistic in statistics.items():
            values[name].append(statistic(weights))
    return {name: np.concatenate(parts) for name, parts in values.items()}


def interval(values: Values) -> Interval:
    """The 95 % percentile interval of what `bootstrap` returns, or of a difference of two such.

    A resample without any image of a class has no AUC; it is left out.
    """
    if np.isnan(values[0]):
        return Interval(np.nan, np.nan, np.nan)
    low, high = np.nanpercentile(values[1:], PERCENTILES)
    return Interval(float(values[0]), float(low), float(high))


def mean_of(metric: str, targets: Targets, repetitions: Sequence[Probabilities]) -> Statistic:
    """The statistic that is the mean of a metric of `WEIGHTED` over several predictions of the same images.

    Args:
        targets: (n,) class numbers.
        repetitions: of each (n, classes) probabilities.
    """
    return lambda weights: np.mean([WEIGHTED[metric](targets, found, weights) for found in repetitions], axis=0)


def _accuracy(targets: Targets, probabilities: Probabilities, weights: Weights) -> Values:
    accuracy: Values = weights @ (probabilities.argmax(1) == targets) / weights.sum(axis=1)
    return accuracy


def _confusion(targets: Targets, probabilities: Probabilities, weights: Weights) -> Values:
    """Confusion matrices (resamples, classes, classes), true classes in rows."""
    classes = probabilities.shape[1]
    cells = np.eye(classes**2)[targets * classes + probabilities.argmax(1)]
    counts: Values = (weights @ cells).reshape(-1, classes, classes)
    return counts


def _balanced_accuracy(targets: Targets, probabilities: Probabilities, weights: Weights) -> Values:
    counts = _confusion(targets, probabilities, weights)
    hits, all_of_class = np.diagonal(counts, axis1=1, axis2=2), counts.sum(axis=2)
    recall: Values = np.divide(hits, all_of_class, out=np.zeros_like(all_of_class), where=all_of_class > 0)
    return np.asarray(recall.mean(axis=1))


def _macro_f1(targets: Targets, probabilities: Probabilities, weights: Weights) -> Values:
    counts = _confusion(targets, probabilities, weights)
    hits = np.diagonal(counts, axis1=1, axis2=2)
    both = counts.sum(axis=1) + counts.sum(axis=2)
    f1: Values = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0).mean(axis=1)
    return f1


def _macro_auc(targets: Targets, probabilities: Probabilities, weights: Weights) -> Values:
    single = [_auc(targets == number, probabilities[:, number], weights) for number in range(probabilities.shape[1])]
    macro: Values = np.mean(single, axis=0)
    return macro


def _auc(is_class: NDArray[np.bool_], probability: Probabilities, weights: Weights) -> Values:
    order = np.argsort(probability)
    ties = np.flatnonzero(np.diff(probability[order], prepend=-np.inf))  # where each run of equal values begins
    ordered, is_class = weights[:, order], is_class[order]
    positive = np.add.reduceat(ordered * is_class, ties, axis=1)
    negative = np.add.reduceat(ordered * ~is_class, ties, axis=1)
    lower = negative.cumsum(axis=1) - negative / 2  # an equal one counts half
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    auc: Values = np.divide((positive * lower).sum(axis=1), pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
    return auc


# As in metrics.METRICS, but for every row of weights at once: (class numbers, probabilities, weights) -> values
WEIGHTED: dict[str, Callable[[Targets, Probabilities, Weights], Values]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "macro_auc": _macro_auc,
}
