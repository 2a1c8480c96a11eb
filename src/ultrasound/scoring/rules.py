"""Which rule turns probabilities into outlines: chosen on images that were not learnt from."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from ultrasound.images.preparation import Pixels
from ultrasound.inference.regions import CONNECTIVITY, Rule
from ultrasound.scoring.outlines import Masks
from ultrasound.scoring.weighted import Values

EDGES = tuple(range(51, 205, 17))  # levels of 255 that are tried as the edge of a region: 0.2 to 0.8
CORES = (0, 128, 166, 204, 230)  # surer ones leave more normals alone and find fewer lesions: docs/results.md
SMALLEST = (0.0, 0.0025, 0.005, 0.01, 0.02)  # shares of the image; a twentieth of BUSI's lesions is under 0.01

HALF = Rule(128, 128, 0.0, 0)  # whatever is more probable than not
RULES = tuple(itertools.product(EDGES, CORES, SMALLEST))


def try_all(truths: Masks, levels: Pixels) -> Values:
    """Dice of every image under every rule of `RULES`: (n, rules).

    Args:
        truths: (n, height, width).
        levels: of the same shape, probability in 255 steps.
    """
    found = np.empty((len(truths), len(RULES)))
    for row in tqdm(range(len(truths)), "rule", leave=False, disable=None):
        truth, size, regions = truths[row], truths[row].size, {}
        for column, (edge, core, smallest) in enumerate(RULES):
            if edge not in regions:
                regions[edge] = _regions(truth, levels[row], edge)
            area, peak, overlap = regions[edge]
            kept = (area >= smallest * size) & (peak >= core)
            both = truth.sum() + area[kept].sum()
            found[row, column] = 2 * overlap[kept].sum() / both if both else 1.0
    return found


def choose(tried: Values) -> Rule:
    """The rule with the highest mean Dice over all images, on images that were not learnt from.

    All images, because a region in an image without a lesion makes its Dice 0: what a threshold gains on lesions it
    must not lose on normal breasts. Of equals the one that finds least; `HALF` where there is nothing to choose on.

    Args:
        tried: of `try_all`.
    """
    if not len(tried):
        return HALF
    means = tried.mean(axis=0).round(12)
    edge, core, smallest = max(RULES[column] for column in np.flatnonzero(means == means.max()))
    return Rule(edge, max(edge, core), smallest, len(tried))


def masks_out_of_fold(tried: Values, levels: Pixels, folds: NDArray[np.int64]) -> tuple[Masks, dict[int, Rule]]:
    """Masks of every image by the rule that the other folds' images have chosen: (n, height, width), and the rules.

    So no image is scored by a rule that it has helped to choose.

    Args:
        tried: of `try_all`.
        levels: (n, height, width), probability in 255 steps.
        folds: (n,) fold of each image.
    """
    founds, rules = np.zeros(levels.shape, np.bool_), {}
    for fold in np.unique(folds):
        here = folds == fold
        rules[int(fold)] = choose(tried[~here])
        founds[here] = [rules[int(fold)].mask(level) for level in levels[here]]
    return founds, rules


def _regions(truth: Masks, levels: Pixels, edge: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Area, highest level and overlap with the truth of each region above a level."""
    number, labels = cv2.connectedComponents((levels >= edge).astype(np.uint8), connectivity=CONNECTIVITY)
    peaks = np.asarray(ndimage.maximum(levels, labels, range(1, number)), np.int64)
    areas, overlaps = (np.bincount(each, minlength=number)[1:] for each in (labels.ravel(), labels[truth]))
    return areas, peaks, overlaps
