"""Two models on the same images: the paired difference of a score, and whether they err on different images.

Sources: the paired bootstrap by group as in `intervals`; McNemar, Psychometrika 12, 1947, in its exact form.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ultrasound.scoring import intervals
from ultrasound.scoring.intervals import Interval
from ultrasound.scoring.metrics import Probabilities, Targets

SEED = 0


def difference(
    metric: str,
    targets: Targets,
    first: Sequence[Probabilities],
    second: Sequence[Probabilities],
    groups: Sequence[int] | NDArray[np.int64],
    resamples: int,
) -> Interval:
    """How much higher the second scores than the first, with the 95 % interval of a paired bootstrap by group.

    Args:
        metric: one of `weighted.METRICS`.
        targets: (n,) class numbers.
        first, second: of each repetition (n, classes) probabilities of the same images; their scores are averaged.
        groups: (n,) group of each image.
    """
    drawn = intervals.bootstrap(
        {name: intervals.mean_of(metric, targets, found) for name, found in (("first", first), ("second", second))},
        groups, resamples, SEED,
    )  # fmt: skip
    return intervals.interval(drawn["second"] - drawn["first"])


def mcnemar(targets: Targets, first: Probabilities, second: Probabilities) -> float:
    """P of the exact two-sided test that both are right equally often: (n, classes) probabilities of the same images.

    It takes images as independent; where groups of near-duplicates are scored, the interval of `difference` is wider
    and the truer answer.
    """
    first_right, second_right = first.argmax(1) == targets, second.argmax(1) == targets
    only_first, only_second = int((first_right & ~second_right).sum()), int((~first_right & second_right).sum())
    if not only_first + only_second:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)
