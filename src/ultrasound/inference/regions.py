"""From probabilities of lesion in every pixel to regions, and what can be measured of them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ultrasound.images.preparation import Pixels

CONNECTIVITY = 8


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which pixels are lesion: regions above a threshold that are large enough and somewhere sure enough.

    A region must reach a higher level than its edge (hysteresis; Canny, IEEE PAMI 8, 1986), because a low threshold
    outlines a lesion well, and finds one where there is none.

    Attributes:
        edge: the lowest level of a region's pixels, 1 to 255, probability in 255 steps.
        core: the level that one of its pixels must reach.
        smallest: the least area of a region, as a share of the prepared image, padding included.
        chosen_on: how many images the three were chosen on.
    """

    edge: int
    core: int
    smallest: float
    chosen_on: int

    def mask(self, levels: Pixels) -> NDArray[np.bool_]:
        """(height, width) uint8 levels -> bool."""
        found = levels >= self.edge
        number, labels, facts, _ = cv2.connectedComponentsWithStats(found.astype(np.uint8), connectivity=CONNECTIVITY)
        peaks = ndimage.maximum(levels, labels, range(number))
        kept = (facts[:, cv2.CC_STAT_AREA] >= self.smallest * levels.size) & (peaks >= self.core)
        kept[0] = False  # the background
        return np.asarray(kept[labels])


class Shape(NamedTuple):
    """Measures of the lesion in an image; NaN where none was found. Of several regions the largest is measured.

    Attributes:
        regions: how many were found.
        area_share: of the scan, all regions together.
        taller_than_wide: height by width of the upright box around the largest: above 1 a known sign of malignancy
            (Stavros et al., Radiology 196, 1995).
        circularity: 4 pi area / perimeter^2: 1 of a disc, less the longer or the more uneven the region is.
    """

    regions: int
    area_share: float
    taller_than_wide: float
    circularity: float


def shape(mask: NDArray[np.bool_], scan_area: int, detail: float = 1) -> Shape:
    """Measure the lesion in a mask whose pixels are square: (height, width) bool.

    Args:
        scan_area: pixels of the mask that show the scan, not the black that pads it.
        detail: pixels of the mask for one that the network saw; the steps between those are no edge of the lesion.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return Shape(0, 0.0, np.nan, np.nan)
    largest = max(contours, key=cv2.contourArea)
    left, top, width, height = cv2.boundingRect(largest)
    border = int(detail) + 2
    filled = np.zeros((height + 2 * border, width + 2 * border), np.uint8)
    cv2.drawContours(filled, [largest], 0, (255,), cv2.FILLED, offset=(border - left, border - top))
    region = filled > 127
    if detail > 1:
        coarse = cv2.resize(filled, None, fx=1 / detail, fy=1 / detail, interpolation=cv2.INTER_AREA) > 127
        region = coarse if coarse.any() else region
    circularity = 4 * np.pi * region.sum() / _perimeter(region) ** 2
    return Shape(len(contours), float(mask.sum() / scan_area), height / width, float(min(circularity, 1)))


def _perimeter(region: NDArray[np.bool_]) -> float:
    """Length of the edge of a region that touches no side, by Crofton's formula in four directions.

    How often lines through all pixels cross the edge, times their distance: unlike the length of a chain of pixels it
    does not grow with the steps of a slanted edge.
    """
    across = np.count_nonzero(region[:, 1:] ^ region[:, :-1]) + np.count_nonzero(region[1:] ^ region[:-1])
    slanted = np.count_nonzero(region[1:, 1:] ^ region[:-1, :-1]) + np.count_nonzero(region[1:, :-1] ^ region[:-1, 1:])
    return float(np.pi / 8 * (across + slanted / np.sqrt(2)))
