"""How well found outlines agree with those that radiologists drew: per image, then averaged with intervals.

Conventions where a mask is empty, as Maier-Hein et al. (Metrics Reloaded, Nature Methods 21, 2024) ask to state them:
with no lesion and none found, Dice and IoU are 1; with one of them empty both are 0. Sensitivity is undefined without a
lesion, precision and the Hausdorff distance without a found one, the distance also without a true one; means leave
undefined values out. A missed lesion so costs Dice and sensitivity, never the distance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from ultrasound.images.preparation import Pixels
from ultrasound.images.slices import Slice
from ultrasound.scoring import intervals
from ultrasound.scoring.intervals import Interval, Share, Statistic
from ultrasound.scoring.weighted import Values, Weights

Masks = NDArray[np.bool_]

SEED = 0


class OutlineMetric(NamedTuple):
    """A mean over images.

    Attributes:
        column: of the table of `per_image`.
        lesion: over the images with a lesion, those without, or all (None).
        definition: in a sentence.
    """

    column: str
    lesion: bool | None
    definition: str


METRICS: dict[str, OutlineMetric] = {
    "dice": OutlineMetric("dice", None, "Dice, twice the common area by the sum of both, mean over all images"),
    "lesion_dice": OutlineMetric("dice", True, "Dice, mean over the images with a lesion"),
    "lesion_iou": OutlineMetric("iou", True, "intersection over union, mean over the images with a lesion"),
    "lesion_sensitivity": OutlineMetric(
        "sensitivity", True, "found share of the lesion's pixels, mean over the images with a lesion"
    ),
    "lesion_precision": OutlineMetric(
        "precision",
        True,
        "share of the found pixels that are lesion, where there is a lesion and anything is found",
    ),
    "hd95": OutlineMetric(
        "hd95",
        True,
        "95 % Hausdorff distance, pixels of the prepared image, where there is a lesion and anything is found",
    ),
    "hd95_relative": OutlineMetric("hd95_relative", True, "the same, by the diameter of a disc of the lesion's area"),
    "found_share": OutlineMetric("found", True, "share of the images with a lesion in which some is found"),
    "false_lesion_rate": OutlineMetric("found", False, "share of the images without a lesion in which one is found"),
    "false_area": OutlineMetric(
        "found_area", False, "area found in images without a lesion, share of the prepared square, padding included"
    ),
}


def per_image(truth: Masks, found: Masks) -> dict[str, float]:
    """Metrics of one image, NaN where undefined: (height, width) each.

    Returns:
        `lesion` and `found` (1 if there is any pixel), `found_area` as a share, `dice`, `iou`, `sensitivity`,
        `precision`, `hd95` in pixels, `hd95_relative`.
    """
    both, true_area, found_area = int((truth & found).sum()), int(truth.sum()), int(found.sum())
    distance = _hausdorff95(truth, found) if true_area and found_area else np.nan
    return {
        "lesion": float(true_area > 0),
        "found": float(found_area > 0),
        "found_area": found_area / truth.size,
        "dice": 2 * both / (true_area + found_area) if true_area + found_area else 1.0,
        "iou": both / (true_area + found_area - both) if true_area + found_area else 1.0,
        "sensitivity": both / true_area if true_area else np.nan,
        "precision": both / found_area if found_area else np.nan,
        "hd95": distance,
        "hd95_relative": distance / np.sqrt(4 * true_area / np.pi) if true_area else np.nan,
    }


def table(truths: Masks, founds: Masks) -> pd.DataFrame:
    """`per_image` of n images, a row each: (n, height, width) each."""
    return pd.DataFrame([per_image(truth, found) for truth, found in zip(truths, founds, strict=True)])


def epoch_score(truths: Masks, levels: Pixels) -> dict[str, float]:
    """Means at a probability of a half, without regard to regions, as they are followed during a training.

    Args:
        truths: (n, height, width).
        levels: of the same shape, probability in 255 steps.
    """
    founds, axes = levels >= 128, (1, 2)
    areas, lesion = truths.sum(axis=axes) + founds.sum(axis=axes), truths.any(axis=axes)
    dice = np.where(areas, 2 * (truths & founds).sum(axis=axes) / np.maximum(areas, 1), 1.0)
    return {
        "dice": float(dice.mean()),
        "lesion_dice": float(dice[lesion].mean()) if lesion.any() else np.nan,
        "false_lesion_rate": float(founds[~lesion].any(axis=axes).mean()) if (~lesion).any() else np.nan,
    }


def statistics(rows: pd.DataFrame) -> dict[str, Statistic]:
    """Name -> statistic of `METRICS`, of a table of `per_image`."""
    lesion, found = (rows[column].to_numpy() > 0 for column in ("lesion", "found"))
    made: dict[str, Statistic] = {}
    for name, metric in METRICS.items():
        among = np.ones(len(rows), np.bool_) if metric.lesion is None else lesion == metric.lesion
        if metric.column == "found":
            made[name] = Share(found, among)
        else:
            made[name] = _mean(rows[metric.column].to_numpy(np.float64), among)
    return made


def scores(rows: pd.DataFrame, groups: Sequence[int] | NDArray[np.int64], resamples: int) -> dict[str, Interval]:
    """Every metric with the 95 % interval of a bootstrap by group; undefined where no image of its kind is there.

    Args:
        rows: of `table`.
        groups: (n,) group of near-duplicates of each image.
    """
    drawn = intervals.bootstrap(statistics(rows), groups, resamples, SEED)
    return {name: intervals.interval(each) for name, each in drawn.items()}


def difference(
    metric: str,
    first: Sequence[pd.DataFrame],
    second: Sequence[pd.DataFrame],
    groups: Sequence[int] | NDArray[np.int64],
    resamples: int,
) -> Interval:
    """How much higher the second scores than the first, with the 95 % interval of a paired bootstrap by group.

    Args:
        metric: of `METRICS`.
        first, second: of each repetition the rows of `table`, of the same images; their scores are averaged.
        groups: (n,) group of near-duplicates of each image.
    """
    drawn = intervals.bootstrap(
        {name: _mean_score(metric, tables) for name, tables in (("first", first), ("second", second))},
        groups, resamples, SEED,
    )  # fmt: skip
    return intervals.interval(drawn["second"] - drawn["first"])


def by_slice(rows: pd.DataFrame, groups: NDArray[np.int64], slices: Sequence[Slice], resamples: int) -> pd.DataFrame:
    """A row a slice: what it is, its images, and every metric with the ends of its interval."""
    found = []
    for part in slices:
        values = scores(rows[part.rows].reset_index(drop=True), groups[part.rows], resamples)
        about = {"by": part.by, "slice": part.name, "images": int(part.rows.sum()), "small": part.is_small}
        for name, score in values.items():
            about |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
        found.append(about)
    return pd.DataFrame(found)


def means(rows: pd.DataFrame) -> dict[str, float]:
    """Every metric without its interval."""
    ones = np.ones((1, len(rows)))
    return {name: float(statistic(ones)[0]) for name, statistic in statistics(rows).items()}


def gallery(rows: pd.DataFrame, number: int) -> dict[str, NDArray[np.int64]]:
    """Positions of the images that tell most: lesions best, middling and worst outlined, and lesions where none is."""
    lesions = np.flatnonzero(rows["lesion"] > 0)
    order = lesions[np.argsort(-rows["dice"].to_numpy()[lesions], kind="stable")]
    middle = max(len(order) // 2 - number // 2, 0)
    false = np.flatnonzero((rows["lesion"] == 0) & (rows["found"] > 0))
    largest = false[np.argsort(-rows["found_area"].to_numpy()[false], kind="stable")]
    found = {
        "best": order[:number], "median": order[middle : middle + number], "worst": order[::-1][:number],
        "false lesion": largest[:number],
    }  # fmt: skip
    return {title: numbers for title, numbers in found.items() if len(numbers)}


def as_text(found: Mapping[str, Interval]) -> str:
    """The scores as lines of a terminal."""
    return "\n".join(f"  {name:<20} {score}" for name, score in found.items())


def _mean(values: Values, among: Masks) -> Statistic:
    counted = among & ~np.isnan(values)
    known = np.where(counted, values, 0.0)

    def mean(weights: Weights) -> Values:
        of = weights @ counted
        found: Values = np.divide(weights @ known, of, out=np.full(len(weights), np.nan), where=of > 0)
        return found

    return mean


def _mean_score(metric: str, tables: Sequence[pd.DataFrame]) -> Statistic:
    each = [statistics(rows)[metric] for rows in tables]

    def mean(weights: Weights) -> Values:
        found: Values = np.mean([statistic(weights) for statistic in each], axis=0)
        return found

    return mean


def _hausdorff95(truth: Masks, found: Masks) -> float:
    """The larger of the two 95th percentiles of distances from one edge to the other, pixels.

    Source: Huttenlocher et al., IEEE PAMI 15, 1993, with a percentile in place of the maximum.
    """
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (truth, found)]
    away = [ndimage.distance_transform_edt(~edge) for edge in edges]
    return float(max(np.percentile(away[1][edges[0]], 95), np.percentile(away[0][edges[1]], 95)))
