"""Whether a version may become champion: what it must reach by itself, and against the champion that stands.

The rule and its reasons: docs/decisions/0012.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from ultrasound.scoring import comparisons, metrics
from ultrasound.scoring.intervals import Interval
from ultrasound.sections import Register, Segment

METRIC, OUTLINE_METRIC = "macro_f1", "dice"  # by which versions are compared
NAMES = {METRIC: "macro-F1", OUTLINE_METRIC: "Dice over all images"}
REQUIRED = (*metrics.METRICS, "operating_sensitivity", "operating_specificity")  # others may have nothing to count


class Verdict(NamedTuple):
    """What became of a version.

    Attributes:
        promoted: it is champion now.
        reasons: a sentence for everything that was looked at.
        figures: name -> what was compared, for the version's tags.
    """

    promoted: bool
    reasons: tuple[str, ...]
    figures: dict[str, float]

    @property
    def reason(self) -> str:
        """All of it in a line."""
        return f"{'Champion' if self.promoted else 'Not champion'}: {' '.join(self.reasons)}"


def difference(challenger: pd.DataFrame, champion: pd.DataFrame, resamples: int) -> Interval:
    """How much higher the challenger's macro-F1 is, with the interval of a paired bootstrap by group.

    Args:
        challenger, champion: tables of predictions of the same images.

    Raises:
        ValueError: they are of other images.
    """
    given = len(champion)
    champion = champion.set_index("image_id").reindex(challenger["image_id"]).reset_index()
    if len(champion) != given or (champion["label"] != challenger["label"]).any():
        raise ValueError("the two evaluations are of other images")
    columns = [column for column in map(str, challenger) if column.startswith("p_")]
    labels = [column.removeprefix("p_") for column in columns]
    targets = challenger["label"].map(labels.index).to_numpy(dtype=np.int64)
    before, after = (table[columns].to_numpy() for table in (champion, challenger))
    groups = challenger["group"].to_numpy(dtype=np.int64)
    return comparisons.difference(METRIC, targets, [before], [after], groups, resamples)


def judge(scores: Mapping[str, float], rules: Register, against: str, gain: Interval | None) -> Verdict:
    """Judge a version.

    Args:
        scores: of the version on the locked test set.
        against: what it is compared with, in words; empty where there is no champion.
        gain: macro-F1 above the champion's; None where there is none.
    """
    undefined = [name for name in REQUIRED if not math.isfinite(scores.get(name, math.nan))]
    if undefined:
        return Verdict(False, (f"No value for {', '.join(undefined)} on the test set.",), {})
    sensitivity, error, score = scores["operating_sensitivity"], scores["ece"], scores[METRIC]
    figures = {METRIC: score, "operating_sensitivity": sensitivity, "ece": error}
    checks = [
        _at_least("sensitivity at the operating point", sensitivity, rules.min_sensitivity, "register.min_sensitivity"),
        _at_most("expected calibration error", error, rules.max_ece, "register.max_ece"),
    ]
    return _judged(checks, METRIC, score, figures, rules.margin, "register.margin", against, gain)


def judge_outlines(scores: Mapping[str, float], rules: Segment, against: str, gain: Interval | None) -> Verdict:
    """Judge a version of the segmenter.

    Args:
        scores: of the version on the locked test set.
        against: what it is compared with, in words; empty where there is no champion.
        gain: Dice over all images above the champion's; None where there is none.
    """
    lesion_dice, false = scores["lesion_dice"], scores["false_lesion_rate"]
    if not (math.isfinite(lesion_dice) and math.isfinite(false)):
        return Verdict(False, ("The test set lacks images with a lesion, or without.",), {})
    checks = [
        _at_least("Dice of the lesions", lesion_dice, rules.min_dice, "segment.min_dice"),
        _at_most("share of images without a lesion in which one is found", false, rules.max_false, "segment.max_false"),
    ]
    figures = {OUTLINE_METRIC: scores[OUTLINE_METRIC], "lesion_dice": lesion_dice, "false_lesion_rate": false}
    score = scores[OUTLINE_METRIC]
    return _judged(checks, OUTLINE_METRIC, score, figures, rules.margin, "segment.margin", against, gain)


def _judged(
    checks: list[tuple[bool, str]], metric: str, score: float, figures: dict[str, float], margin: float, key: str,
    against: str, gain: Interval | None,
) -> Verdict:  # fmt: skip
    """Add what the champion that stands has to say."""
    name, reasons = NAMES[metric], []
    if gain is None:
        first = ", the first champion" if all(ok for ok, _ in checks) else ""
        reasons.append(f"{name[0].upper()}{name[1:]} on the test set {score:.3f}{first}.")
    else:
        value, low, high = gain
        figures |= {"gain": value, "gain_low": low, "gain_high": high}
        written = f"{name} on the test set {score:.3f}, {value:+.3f} ({low:+.3f} to {high:+.3f}) against {against}"
        if value <= 0:
            checks.append((False, f"No better: {written}."))
        elif low < -margin:
            checks.append((False, f"It may be worse by more than {key}={margin}: {written}."))
        else:
            checks.append((True, f"Better: {written}."))
    return Verdict(all(ok for ok, _ in checks), (*reasons, *(sentence for _, sentence in checks)), figures)


def _at_least(name: str, value: float, least: float, key: str) -> tuple[bool, str]:
    return value >= least, f"{name[0].upper()}{name[1:]} {value:.3f}, at least {key}={least} is asked for."


def _at_most(name: str, value: float, most: float, key: str) -> tuple[bool, str]:
    return value <= most, f"{name[0].upper()}{name[1:]} {value:.3f}, at most {key}={most} is allowed."
