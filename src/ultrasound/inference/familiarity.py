"""Whether an image is like those that a model has learnt from; if not, the model abstains.

A few numbers describe how a scan looks whatever it shows: its grey levels, how they fall with depth, how fine and how
stretched its speckle is. How far an image lies from those that were learnt from is Mahalanobis's distance in these
numbers (as in Lee et al., NeurIPS 2018, who take a network's features). So it needs no network and no foreign images;
`scoring/resemblance.py` fits it. It tells another kind of image, not a rare finding in a good scan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ultrasound.images.preparation import BLACK, Pixels

LEAST_SIDE = 96  # pixels, about half of the least side in BUSI, 190
CHROMA = 32  # levels between the strongest and the weakest channel of a coloured pixel; compression leaves less
COLOURED_SHARE = 0.03  # of the pixels; calipers and a logo colour at most 0.0101 of a BUSI image
COLOUR_SIDE = 256  # pixels; a sample that large tells the share of coloured ones
BRIGHT = 200  # the lowest level of an interface that is nearly saturated
BANDS = 12  # of depth, and as many columns: coarser than speckle, finer than the layers of a breast
LEAST_CONTENT = 8  # pixels; from less no texture can be told

UNLIKE = "The image does not look like the breast ultrasound images that the model has learnt from."
COLOURED = "The image is coloured; B-mode ultrasound is grey."

TRAITS = (
    "mean",  # level, as a logarithm
    "skewness",  # of the levels: a scan has many dark and few bright pixels
    "bright",  # share of nearly saturated pixels, its root
    "high",  # the level that a tenth of the pixels exceeds, its root
    "surface",  # the level of the first twelfth of the depth, above the mean, in deviations; so the next two. No
    # logarithm, which would take a large cyst for an outlier
    "near",  # the third and fourth twelfth
    "middle",  # the fifth and sixth
    "coarse",  # deviation between 12 x 12 tiles against that of the pixels, logarithm
    "lateral",  # the same between the tiles of one depth
    "fine",  # mean step to the next pixel against the deviation of the levels, logarithm
    "second",  # mean second difference against the mean step, logarithm: noise has a large one
    "edges",  # mean squared against squared mean step, logarithm: drawings have few but high steps
    "coarse_edges",  # the same at a fourth of the resolution
    "shallow",  # steps in the upper against those in the lower half, logarithm: speckle widens with depth
    "stretch",  # lateral against axial steps, logarithm: speckle is wider than high
    "stretch_half",  # the same at half
    "stretch_fourth",  # and at a fourth of the resolution
)


@dataclasses.dataclass(frozen=True)
class Familiarity:
    """How the images look that a model has learnt from.

    Attributes:
        centre: mean of each of `TRAITS`.
        precision: inverse of their covariance.
        limit: the largest distance of an image that is still like them.
        images: how many the three were fitted on.
    """

    centre: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    limit: float
    images: int

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Familiarity:
        """Make it from what `dataclasses.asdict` and JSON made of it.

        Raises:
            TypeError, KeyError: these are no such facts.
            ValueError: they are of other traits than `TRAITS`.
        """
        rows = tuple(tuple(row) for row in facts["precision"])
        if not len(facts["centre"]) == len(rows) == len(TRAITS) or any(len(row) != len(TRAITS) for row in rows):
            raise ValueError(f"the familiarity is not of {len(TRAITS)} traits")
        return cls(**{**facts, "centre": tuple(facts["centre"]), "precision": rows})

    def distance(self, found: NDArray[np.float64]) -> float:
        """Mahalanobis's distance of an image: (traits,) -> at or above 0; about the root of their number is usual."""
        away = found - np.array(self.centre)
        return float(np.sqrt(max(away @ np.array(self.precision) @ away, 0)))

    def knows(self, prepared: Pixels) -> bool:
        """Whether a prepared image, (size, size) grey, is like those that were learnt from."""
        return self.distance(traits(prepared)) <= self.limit

    def abstains(self, unfit: str, prepared: Pixels) -> str:
        """Why the model must abstain: what `unfit` said of the image, else `UNLIKE`; nothing if it need not."""
        return unfit or ("" if self.knows(prepared) else UNLIKE)


def unfit(image: Image.Image) -> str:
    """Why any model must abstain from an image, by its size or colours: a sentence, or nothing if it need not.

    Args:
        image: as it was sent, decoded.
    """
    if min(image.size) < LEAST_SIDE:
        return f"The image is too small: {image.width} x {image.height} pixels, at least {LEAST_SIDE} are needed."
    return COLOURED if coloured_share(image) > COLOURED_SHARE else ""


def coloured_share(image: Image.Image) -> float:
    """The share of pixels whose channels differ by more than `CHROMA` levels, 0 to 1, from a sample of large images."""
    if image.mode == "L":
        return 0.0
    sides = (min(image.width, COLOUR_SIDE), min(image.height, COLOUR_SIDE))
    sample = image.resize(sides, Image.Resampling.NEAREST)  # any other would mix colours with grey
    red, green, blue = (np.asarray(channel) for channel in sample.convert("RGB").split())
    strongest = np.maximum(np.maximum(red, green), blue)
    weakest = np.minimum(np.minimum(red, green), blue)
    return float(np.mean(strongest - weakest > CHROMA))


def traits(grey: Pixels) -> NDArray[np.float64]:
    """The numbers that describe how a prepared image looks: (height, width) uint8 -> (len(TRAITS),), all finite.

    Black lines around the scan, as `fit: pad` leaves them, do not count. Ratios have a small number added above and
    below, so that a blank image has traits, too.
    """
    scan = _content(grey)
    middle = len(scan) // 2
    levels = np.arange(256)
    shares = cv2.calcHist([scan], [0], None, [256], [0, 256]).ravel().astype(np.float64) / scan.size
    mean = float(shares @ levels)
    deviation = float(np.sqrt(shares @ (levels - mean) ** 2))
    tiles = cv2.resize(scan.astype(np.float32), (BANDS, BANDS), interpolation=cv2.INTER_AREA).astype(np.float64)
    bands = tiles.mean(axis=1)
    depth = (bands - mean) / (deviation + 8)
    steps, edges, stretch = _steps(scan)
    _, _, stretch_half = _steps(_smaller(scan, 2))
    _, coarse_edges, stretch_fourth = _steps(_smaller(scan, 4))
    second = cv2.norm(cv2.Laplacian(scan, cv2.CV_16S), cv2.NORM_L1) / scan.size
    above, below = _steps(scan[:middle])[0], _steps(scan[middle:])[0]
    return np.array(
        [
            np.log(mean + 1),
            np.cbrt(shares @ (levels - mean) ** 3) / (deviation + 2),
            np.sqrt(shares[BRIGHT:].sum()),
            np.sqrt(np.searchsorted(np.cumsum(shares), 0.9)),
            depth[0],
            depth[2:4].mean(),
            depth[4:6].mean(),
            np.log((tiles.std() + 1) / (deviation + 1)),
            np.log(((tiles - bands[:, None]).std() + 1) / (deviation + 1)),
            np.log((steps + 0.1) / (deviation + 1)),
            np.log((second + 0.1) / (steps + 0.1)),
            edges,
            coarse_edges,
            np.log((above + 0.2) / (below + 0.2)),
            stretch,
            stretch_half,
            stretch_fourth,
        ]
    )


def _content(grey: Pixels) -> Pixels:
    """Cut off the black lines around a scan; an image that is nothing but black stays whole."""
    shown = grey > BLACK
    rows, columns = (np.flatnonzero(shown.any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0 or min(rows[-1] - rows[0], columns[-1] - columns[0]) < LEAST_CONTENT:
        return grey
    return np.ascontiguousarray(grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _smaller(scan: Pixels, parts: int) -> Pixels:
    sides = (max(scan.shape[1] // parts, 2), max(scan.shape[0] // parts, 2))
    return np.asarray(cv2.resize(scan, sides, interpolation=cv2.INTER_AREA), np.uint8)


def _steps(scan: Pixels) -> tuple[float, float, float]:
    """Differences between next pixels: their mean, how uneven they are, and lateral against axial ones."""
    pairs = ((scan[:, 1:], scan[:, :-1]), (scan[1:], scan[:-1]))
    lateral, axial = (cv2.norm(one, other, cv2.NORM_L1) / one.size for one, other in pairs)
    squares = sum(cv2.norm(one, other, cv2.NORM_L2SQR) / one.size for one, other in pairs)
    uneven = np.log((squares + 0.1) / (lateral + axial + 0.1) ** 2)
    return lateral + axial, float(uneven), float(np.log((lateral + 0.1) / (axial + 0.1)))
