"""What images must resemble so that a model that has learnt from these answers: fits `inference/familiarity.py`.

The limit is an order statistic of the distances of images that the rest was not fitted on, as in conformal prediction
(Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005); no foreign image has a part in it. The
covariance is shrunk (Ledoit and Wolf, J Multivar Anal 88, 2004), so that few images will do.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.model_selection import GroupKFold

from ultrasound.errors import InputError
from ultrasound.inference.familiarity import Familiarity, traits

REFUSED = 0.005  # of new images of the same kind, about
ENOUGH = 199  # images; of fewer, even the largest distance is exceeded by more than that share
MARGIN = 1.2  # and so this is put on it
FOLDS = 5
LEAST_IMAGES = 10
LEAST_DEVIATION = 0.01  # of a trait; one that is the same in all images must not weigh more than all others


def fit(prepared: NDArray[np.uint8], groups: NDArray[np.int64]) -> Familiarity:
    """Learn how these images look, and how far from that others of the same kind may be.

    The limit is the distance that about `REFUSED` of the images exceed when they are left out of the fit, with their
    group; of fewer than `ENOUGH` images it is the largest such distance, times `MARGIN`. Nothing is drawn at random.

    Args:
        prepared: (n, size, size) grey.
        groups: (n,) of near-duplicates, which must not be on both sides.

    Raises:
        InputError: there are fewer than `LEAST_IMAGES` images, or they are all of one group.
    """
    different = len(np.unique(groups))
    if len(prepared) < LEAST_IMAGES or different < 2:
        raise InputError(
            f"{len(prepared)} images, {different} apart from near-duplicates, are too few to learn how such look: "
            f"it takes {LEAST_IMAGES}, 2 apart from near-duplicates; add images"
        )
    found = np.stack([traits(grey) for grey in prepared])
    distances = np.empty(len(found))
    for learnt, left_out in GroupKFold(min(FOLDS, different)).split(found, groups=groups):
        seen = _described(found[learnt], math.inf)
        distances[left_out] = [seen.distance(row) for row in found[left_out]]
    return _described(found, _limit(distances))


def _limit(distances: NDArray[np.float64]) -> float:
    if len(distances) < ENOUGH:
        return MARGIN * float(distances.max())
    within = math.ceil((1 - REFUSED) * (len(distances) + 1) - 1e-9)
    return float(np.sort(distances)[within - 1])


def _described(found: NDArray[np.float64], limit: float) -> Familiarity:
    centre = found.mean(axis=0)
    scale = found.std(axis=0) + LEAST_DEVIATION  # shrinking takes all traits to be of one size
    shrunk = LedoitWolf(assume_centered=True).fit((found - centre) / scale).covariance_ * np.outer(scale, scale)
    precision = np.linalg.inv(shrunk + LEAST_DEVIATION**2 * np.eye(len(scale)))
    rows = tuple(tuple(float(value) for value in row) for row in precision)
    return Familiarity(tuple(float(value) for value in centre), rows, limit, len(found))
