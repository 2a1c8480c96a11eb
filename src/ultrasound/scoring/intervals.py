"""Intervals of scores: a bootstrap that draws groups of near-duplicates, for single scores and paired differences.

Images of one group resemble each other, so that drawing single images would make intervals too narrow. Sources: the
bias-corrected and accelerated bootstrap (Efron, J Am Stat Assoc 82, 1987; Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 14), because the plain percentiles hold a score near 1 too rarely; whole clusters drawn with
replacement (Field and Welsh, J R Stat Soc B 69, 2007). No model is trained anew for a resample: intervals tell of the
images that are scored, repetitions with other seeds of the training.

A resample is a row of weights: how often each image was drawn. A statistic turns all rows into values at once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from ultrasound.scoring import weighted
from ultrasound.scoring.metrics import Flags, Probabilities, Targets
from ultrasound.scoring.weighted import Values, Weights

Statistic = Callable[[Weights], Values]

LEVELS = np.array([0.025, 0.975])
BLOCK = 500  # resamples at once: bounds the memory


class Interval(NamedTuple):
    """A score with the ends of its 95 % interval; NaN where it has none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As people read it; a score that is the same in all resamples has no interval worth showing."""
        if self.value != self.value:
            return "undefined"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})" if self.low < self.high else f"{self.value:.3f}"


@dataclasses.dataclass(frozen=True)
class Share:
    """The statistic that is a share of images.

    Attributes:
        flags: (n,) images that count.
        among: (n,) images of which they are a share.
    """

    flags: Flags
    among: Flags

    def __call__(self, weights: Weights) -> Values:
        """NaN in resamples without any image `among`."""
        return weighted.share(self.flags, self.among, weights)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A statistic and how it varies. The difference of two that saw the same resamples is a paired comparison.

    Attributes:
        value: on the images as they are.
        resamples: (resamples,) values.
        without: (groups,) value without each group, which tells how skewed it is.
        units: of a share, the groups that it is a share of; 0 for other statistics.
    """

    value: float
    resamples: Values
    without: Values
    units: int

    def __sub__(self, other: Drawn) -> Drawn:
        return Drawn(self.value - other.value, self.resamples - other.resamples, self.without - other.without, 0)


def bootstrap(
    statistics: Mapping[str, Statistic], groups: Sequence[int] | NDArray[np.int64], resamples: int, seed: int
) -> dict[str, Drawn]:
    """Draw as many groups as there are, with replacement, `resamples` times; every statistic sees the same ones.

    Args:
        statistics: name -> function of weights.
        groups: (n,) group of each image; groups of one draw single images.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    count = int(group.max()) + 1
    rng = np.random.default_rng(seed)
    values: dict[str, list[Values]] = {name: [] for name in statistics}
    rows = np.concatenate([np.ones((1, count)), 1 - np.eye(count)])
    for begin in range(0, resamples, BLOCK):
        for name, statistic in statistics.items():
            values[name].append(statistic(rows[:, group]))
        rows = rng.multinomial(count, np.full(count, 1 / count), size=min(BLOCK, resamples - begin)).astype(np.float64)
    found = {}
    for name, statistic in statistics.items():
        every = np.concatenate([*values[name], statistic(rows[:, group])])
        units = len(np.unique(group[statistic.among])) if isinstance(statistic, Share) else 0
        found[name] = Drawn(float(every[0]), every[count + 1 :], every[1 : count + 1], units)
    return found


def interval(drawn: Drawn) -> Interval:
    """The 95 % interval of a statistic, or of a difference of two.

    A resample without any image of a class has no AUC; it is left out. A share of 0 or 1 is the same in all resamples;
    its interval is that of Clopper and Pearson (Biometrika 26, 1934), each group counted once.
    """
    value, kept = drawn.value, drawn.resamples[~np.isnan(drawn.resamples)]
    if np.isnan(value) or not len(kept):
        return Interval(value, np.nan, np.nan)
    if drawn.units and value in (0, 1):
        exact = stats.binomtest(round(value * drawn.units), drawn.units).proportion_ci()
        return Interval(value, float(exact.low), float(exact.high))
    below = (np.mean(kept < value) + np.mean(kept <= value)) / 2
    bias = special.ndtri(np.clip(below, 0.5 / len(kept), 1 - 0.5 / len(kept)))
    deviation = np.nanmean(drawn.without) - drawn.without[~np.isnan(drawn.without)]
    spread = np.sum(deviation**2) ** 1.5
    acceleration = np.sum(deviation**3) / (6 * spread) if spread > 0 else 0.0
    shifted = bias + special.ndtri(LEVELS)
    low, high = np.percentile(kept, 100 * special.ndtr(bias + shifted / (1 - acceleration * shifted)))
    return Interval(value, float(low), float(high))


def mean_of(metric: str, targets: Targets, repetitions: Sequence[Probabilities]) -> Statistic:
    """The statistic that is the mean of a metric of `weighted.METRICS` over several predictions of the same images.

    Args:
        targets: (n,) class numbers.
        repetitions: of each (n, classes) probabilities.
    """
    of = weighted.METRICS[metric]
    return lambda weights: np.mean([of(targets, found, weights) for found in repetitions], axis=0)


def all_of(targets: Targets, probabilities: Probabilities, labels: Sequence[str]) -> dict[str, Statistic]:
    """The statistics that are the metrics of `metrics.score`, under the same names.

    Args:
        targets: (n,) class numbers.
        probabilities: (n, classes), rows sum to 1.
        labels: class names in the order of the columns.
    """
    found = {name: mean_of(name, targets, [probabilities]) for name in weighted.METRICS}
    chosen = probabilities.argmax(1)
    found["accuracy"] = Share(chosen == targets, np.ones(len(targets), dtype=np.bool_))
    for number, label in enumerate(labels):
        is_class, called = targets == number, chosen == number
        for name, of in weighted.CLASS_METRICS.items():
            found[f"{name}_{label}"] = functools.partial(of, is_class, called, probabilities[:, number])
        for name, flags, among in (
            ("precision", is_class, called), ("recall", called, is_class), ("specificity", ~called, ~is_class),
        ):  # fmt: skip
            if among.any():
                found[f"{name}_{label}"] = Share(flags, among)
    return found
