"""Every score of a classifier on images that it has not learnt from, with intervals; and the same in slices of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ultrasound.images.slices import Slice
from ultrasound.scoring import intervals, metrics, weighted
from ultrasound.scoring.agreement import Agreement
from ultrasound.scoring.intervals import Interval, Share, Statistic
from ultrasound.scoring.metrics import Flags, Probabilities, Targets

SEED = 0
OPERATING = ("operating_sensitivity", "operating_specificity", "abstained", "answered_accuracy")  # that are printed


class Answers(NamedTuple):
    """What a classifier says to n images, and what they are.

    Attributes:
        targets: (n,) class numbers.
        probabilities: (n, classes) calibrated.
        labels: class names in the order of the columns.
        positive: number of the class that the operating point is for.
        called: (n,) at or above the operating point.
        sets: (n, classes) which classes the prediction sets hold.
        groups: (n,) group of near-duplicates of each image.
    """

    targets: Targets
    probabilities: Probabilities
    labels: tuple[str, ...]
    positive: int
    called: Flags
    sets: Flags
    groups: NDArray[np.int64]

    @property
    def is_positive(self) -> Flags:
        """(n,) whether an image is of the positive class."""
        return np.asarray(self.targets == self.positive)

    @property
    def right(self) -> Flags:
        """(n,) whether the most probable class is the true one."""
        return np.asarray(self.probabilities.argmax(1) == self.targets)

    @property
    def abstains(self) -> Flags:
        """(n,) whether the prediction set is not the most probable class alone: it should then not be believed.

        A set may leave the most probable class out, as every class has a threshold of its own.
        """
        chosen = self.sets[np.arange(len(self.sets)), self.probabilities.argmax(axis=1)]
        return np.asarray((self.sets.sum(axis=1) != 1) | ~chosen)


def statistics(answers: Answers, agreement: Agreement | None = None) -> dict[str, Statistic]:
    """Name -> statistic: metrics, operating point, prediction sets, heat maps of the images with a lesion."""
    found = intervals.all_of(answers.targets, answers.probabilities, answers.labels)
    every, positive = np.ones(len(answers.targets), dtype=np.bool_), answers.is_positive
    found |= {
        "operating_sensitivity": Share(answers.called, positive),
        "operating_specificity": Share(~answers.called, ~positive),
        "operating_positive_predictive_value": Share(positive, answers.called),
        "operating_negative_predictive_value": Share(~positive, ~answers.called),
        "abstained": Share(answers.abstains, every),
        "answered_accuracy": Share(answers.right, ~answers.abstains),
        "set_size": lambda weights: weighted.mean(answers.sets.sum(axis=1).astype(np.float64), weights),
    }
    for number, label in enumerate(answers.labels):
        found[f"coverage_{label}"] = Share(answers.sets[:, number], answers.targets == number)
    return found | (_explained(answers, agreement) if agreement else {})


def scores(statistics: dict[str, Statistic], groups: NDArray[np.int64], resamples: int) -> dict[str, Interval]:
    """Each statistic with its 95 % interval, all from the same resamples of groups; deterministic.

    The expected calibration error has no interval: gaps add up whichever way they go, so that resamples of any
    predictions look worse calibrated than the predictions are.
    """
    drawn = intervals.bootstrap(statistics, groups, resamples, SEED)
    found = {name: intervals.interval(each) for name, each in drawn.items()}
    return {name: Interval(each.value, np.nan, np.nan) if name == "ece" else each for name, each in found.items()}


def by_slice(answers: Answers, slices: Sequence[Slice], resamples: int) -> pd.DataFrame:
    """Scores of each slice.

    Returns:
        One row a slice: by, slice, images, groups, small, and accuracy, sensitivity and specificity at the operating
        point with the ends of their intervals; NaN where there is no image that they could be measured on.
    """
    every, rows = np.ones(len(answers.targets), dtype=np.bool_), []
    for part in slices:
        asked = {"accuracy": (answers.right, every), "sensitivity": (answers.called, answers.is_positive),
                 "specificity": (~answers.called, ~answers.is_positive)}  # fmt: skip
        row: dict[str, object] = {
            "by": part.by, "slice": part.name, "images": int(part.rows.sum()),
            "groups": len(np.unique(answers.groups[part.rows])), "small": part.is_small,
        }  # fmt: skip
        shares: dict[str, Statistic] = {
            name: Share(flags[part.rows], among[part.rows])
            for name, (flags, among) in asked.items() if among[part.rows].any()
        }  # fmt: skip
        found = scores(shares, answers.groups[part.rows], resamples)
        for name in asked:
            value, low, high = found.get(name, Interval(np.nan, np.nan, np.nan))
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def as_text(scores: Mapping[str, Interval], labels: Sequence[str]) -> str:
    """The scores as lines to print: those of the whole first, then a table of the single classes."""
    lines = [f"  {metrics.title(name):<36} {scores[name]}" for name in (*metrics.METRICS, *OPERATING)]
    width = max(map(len, metrics.CLASS_METRICS)) + 2
    lines.append(" " * 13 + "".join(f"{name:>{width}}" for name in metrics.CLASS_METRICS))
    for label in labels:
        row = [scores[f"{name}_{label}"].value for name in metrics.CLASS_METRICS]
        lines.append(f"  {label:<11}" + "".join(f"{value:>{width}.3f}" for value in row))
    return "\n".join(lines)


def _explained(answers: Answers, agreement: Agreement) -> dict[str, Statistic]:
    has_lesion = agreement.area > 0
    found: dict[str, Statistic] = {}
    for label, among in (
        ("all", has_lesion),
        *((label, has_lesion & (answers.targets == number)) for number, label in enumerate(answers.labels)),
    ):
        if among.any():
            found[f"peak_in_lesion_{label}"] = Share(agreement.peak, among)
            found[f"centre_in_lesion_{label}"] = Share(agreement.centre, among)
            found[f"heat_in_lesion_{label}"] = _mean(agreement.heat, among)
            found[f"lesion_area_{label}"] = _mean(agreement.area, among)
    return found


def _mean(values: NDArray[np.float64], among: Flags) -> Statistic:
    return lambda weights: weighted.ratio(weights @ (values * among), weights @ among.astype(np.float64), np.nan)
