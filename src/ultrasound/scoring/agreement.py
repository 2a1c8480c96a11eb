"""Whether heat maps agree with where the lesion is, and whether they depend on what the network has learnt.

Sources: the pointing game, Zhang et al., ECCV 2016; the share of the heat in the object, Wang et al. (Score-CAM), CVPR
workshops 2020; randomised weights, Adebayo et al., NeurIPS 2018.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Maps = NDArray[np.float32]
Masks = NDArray[np.bool_]


class Agreement(NamedTuple):
    """Heat maps against lesion masks, one value an image.

    Attributes:
        peak: (n,) whether the centre of the hottest cell lies in the lesion; a map without any heat has none.
        heat: (n,) share of the heat that lies in the lesion.
        area: (n,) share of the image that is lesion: what heat spread evenly would score.
        centre: (n,) whether the image's centre lies in the lesion: what a map that always points there would score.
    """

    peak: NDArray[np.bool_]
    heat: NDArray[np.float64]
    area: NDArray[np.float64]
    centre: NDArray[np.bool_]


def agreement(maps: Maps, enlarged: Maps, masks: Masks) -> Agreement:
    """Compare heat maps with masks.

    Args:
        maps: (n, h, w) as they were made; where the hottest cell is. Enlarged, a cell at the edge is as hot all the way
            to the edge, and its centre cannot be told.
        enlarged: (n, size, size) the same at the size of the images; how much heat lies where.
        masks: (n, size, size).
    """
    flat, inside = enlarged.reshape(len(maps), -1).astype(np.float64), masks.reshape(len(masks), -1)
    total = flat.sum(axis=1)
    size, (height, width) = masks.shape[1], maps.shape[1:]
    row, column = np.unravel_index(maps.reshape(len(maps), -1).argmax(axis=1), (height, width))
    hottest = masks[np.arange(len(maps)), (2 * row + 1) * size // (2 * height), (2 * column + 1) * size // (2 * width)]
    hottest = hottest & (total > 0)
    heat = np.divide((flat * inside).sum(axis=1), total, out=np.zeros(len(flat)), where=total > 0)
    middle = masks.shape[1] // 2
    return Agreement(hottest, heat, inside.mean(axis=1), masks[:, middle, middle])


def similarity(first: Maps, second: Maps) -> NDArray[np.float64]:
    """Spearman's rank correlation of each pair of maps: two (n, h, w) -> (n,); 0 where a map is the same everywhere."""
    found = np.zeros(len(first))
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        if np.ptp(one) > 0 and np.ptp(other) > 0:
            found[number] = stats.spearmanr(one.ravel(), other.ravel()).statistic
    return found
