"""Pictures of single answers: the scan with its lesion outlined, beside it where the network looked."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from ultrasound.images.preparation import Pixels
from ultrasound.scoring.evaluation import Answers

OUTLINE = (255, 214, 0)  # RGB, seen on every grey
OPACITY = 0.5  # of the hottest pixel
GAP = 4  # pixels between the two pictures


def picture(image: Pixels, mask: NDArray[np.bool_], heat: NDArray[np.float32]) -> Image.Image:
    """A prepared scan with the lesion outlined, and the same under its heat map: three (size, size) -> RGB, two beside.

    The hotter a pixel, the more the colour covers; a map without heat covers nothing.
    """
    grey = np.repeat(image[:, :, None], 3, axis=2)
    edge = ndimage.binary_dilation(mask, iterations=2) & ~mask
    hottest = heat.max()
    share = heat / hottest if hottest > 0 else heat
    colour = 255 * colormaps["inferno"](share)[:, :, :3]
    opacity = OPACITY * share[:, :, None]
    covered = (grey * (1 - opacity) + colour * opacity).round().astype(np.uint8)
    pictures = []
    for pixels in (grey, covered):
        outlined = pixels.copy()
        outlined[edge] = OUTLINE
        pictures.append(outlined)
    gap = np.zeros((len(image), GAP, 3), np.uint8)
    return Image.fromarray(np.concatenate([pictures[0], gap, pictures[1]], axis=1))


def surest(answers: Answers, right: bool, number: int) -> NDArray[np.int64]:
    """Positions of the answers that are right, or wrong, with the highest probability: the surest first."""
    rows = np.flatnonzero(answers.right == right)
    order = np.argsort(-answers.probabilities[rows].max(axis=1), kind="stable")
    return np.asarray(rows[order][:number])
