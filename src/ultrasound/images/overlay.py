"""What a scanner or a reader has drawn on a scan: caliper crosses, dotted lines, lettering, logos.

An overlay is told from echoes by what it is: strokes of one bright level, 2-3 pixels wide, sharp, upright, of a fixed
size in pixels. On 252 BUSI images that were labelled by eye (tests/images/annotations_by_eye.csv; the limits were
chosen on them, too), calipers are found with sensitivity 0.96 and specificity 1.00, text with 1.00 and 1.00. Missed are
thin crosses on bright tissue and the open cross of a cursor.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ultrasound.images.preparation import Pixels

SURE = 0.5  # of calipers and text; on BUSI any threshold from 0.4 to 0.6 flags the same images
CLEAR = 60  # levels between a mark and what surrounds it that leave no doubt
ARM = 6  # pixels from the centre of a cross to the ends of its arms, at least
OVERLAY = (130, 180)  # levels that the arms of a cross have, and letters, at least
LETTER = (9, 24)  # pixels, height
LOGO = 40  # pixels from the top: there, at the left and right, stands the scanner's mark

Mask = NDArray[np.bool_]
Numbers = NDArray[np.float64]

cv2.setNumThreads(1)  # one process a core is enough, and OpenCV's threads do not survive a fork


def marks(grey: Pixels) -> Mask:
    """Where crosses, their numbers and dotted lines, lettering and the scanner's mark cover the scan.

    (height, width) uint8 -> (height, width) bool, with a margin of about 3 pixels. Large bright areas are not covered.
    """
    covered, crosses = np.zeros(grey.shape, np.uint8), _crosses(grey)
    for y, x, _ in crosses:
        cv2.rectangle(covered, (int(x) - 12, int(y) - 12), (int(x) + 12, int(y) + 12), 1, -1)
    for start, end in _dotted_lines(grey, crosses):
        cv2.line(covered, start, end, 1, 7)
    letters, total = _letters(grey), grey.shape[1]
    written = _legibility(letters, total, alone=True) >= CLEAR * SURE
    for left, top, width, height, _ in letters[written | _near(letters, crosses) | _in_logo(letters, total)].astype(
        int
    ):
        cv2.rectangle(covered, (left - 3, top - 3), (left + width + 2, top + height + 2), 1, -1)
    return covered.astype(bool)


def sureness(grey: Pixels) -> tuple[float, float]:
    """How sure that there are calipers, and text: the contrast of the second clearest cross, or letter of a row."""
    crosses, letters, width = _crosses(grey), _letters(grey), grey.shape[1]
    calipers = min(1.0, crosses[1, 2] / CLEAR) if len(crosses) > 1 else 0.0  # a measurement has two ends
    if calipers >= SURE:
        letters = letters[~_near(letters, crosses)]
    legible = _legibility(letters[~_in_logo(letters, width)], width, alone=calipers < SURE)
    return calipers, min(1.0, legible.max(initial=0) / CLEAR)


def darkest(levels: Pixels, size: tuple[int, int]) -> Pixels:
    """The darkest level in a window of `size` (rows, columns) around each pixel; beyond the image all is dark."""
    window = np.ones(size, np.uint8)
    return np.asarray(cv2.erode(levels, window, borderType=cv2.BORDER_CONSTANT, borderValue=0), np.uint8)


def _crosses(grey: Pixels) -> Numbers:
    """Upright crosses: (n, 3) of row, column and contrast, the clearest first.

    The contrast is that of the darkest pixel of the four arms to the eight places beside their ends; of these the
    brightest is left out, because a number or a dotted line may pass there.
    """
    arms = np.minimum(darkest(grey, (1, 2 * ARM + 1)), darkest(grey, (2 * ARM + 1, 1)))
    rows, columns = np.nonzero((arms >= OVERLAY[0]) & (arms > cv2.blur(grey, (19, 19))))
    aside = np.pad(cv2.blur(grey, (3, 3)), ARM, "edge")
    beside = np.stack(
        [aside[rows + ARM + down, columns + ARM + right]
         for far, near in ((5, 4), (5, -4), (-5, 4), (-5, -4)) for down, right in ((far, near), (near, far))]
    )  # fmt: skip
    contrast = arms[rows, columns].astype(int) - np.partition(beside, -2, axis=0)[-2]
    found: list[tuple[int, int, int]] = []
    for index in np.argsort(-contrast, kind="stable"):
        row, column = int(rows[index]), int(columns[index])
        if contrast[index] < CLEAR / 3 or len(found) == 16:
            break
        if all(max(abs(row - y), abs(column - x)) > 10 for y, x, _ in found):
            found.append((row, column, int(contrast[index])))
    return np.array(found, float).reshape(-1, 3)


def _dotted_lines(grey: Pixels, crosses: Numbers) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Pairs of crosses, as points (column, row), with a line between them that is brighter than its surroundings."""
    dots, found = cv2.dilate(grey, np.ones((3, 3), np.uint8)).astype(int), []
    for start, end in combinations(crosses[:, :2], 2):
        length = np.hypot(*(end - start))
        path = start + np.linspace(0, 1, int(length))[:, None] * (end - start)
        aside = 6 / length * (end - start)[::-1] * (1, -1)
        line, *beside = (dots[tuple(np.rint(places).astype(int).clip(0, np.array(grey.shape) - 1).T)]
                         for places in (path, path + aside, path - aside))  # fmt: skip
        if np.mean(line - np.maximum(*beside) > CLEAR / 3) > 0.7:
            found.append(((int(start[1]), int(start[0])), (int(end[1]), int(end[0]))))
    return found


def _letters(grey: Pixels) -> Numbers:
    """What may be letters, the clearest first: (n, 5) of left, top, width, height and contrast, none overlapping."""
    thin = cv2.morphologyEx(grey, cv2.MORPH_TOPHAT, np.ones((11, 11), np.uint8)) > 45
    found: list[tuple[int, int, int, int, int]] = []
    for level in (165, 205):  # the higher one parts letters from bright tissue behind them
        _, labels = cv2.connectedComponents((thin & (grey > level)).astype(np.uint8), connectivity=8)
        for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            if not (LETTER[0] <= height <= LETTER[1] and 2 <= width <= min(LETTER[1], 1.6 * height)):
                continue
            window = np.s_[max(rows.start - 3, 0) : rows.stop + 3, max(columns.start - 3, 0) : columns.stop + 3]
            contrast = _letter_contrast(grey[window], (labels[window] == index).astype(np.uint8))
            if contrast > CLEAR / 3:
                found.append((columns.start, rows.start, width, height, contrast))
    kept: list[tuple[int, int, int, int, int]] = []
    for letter in sorted(found, key=lambda letter: (-letter[4], letter)):
        if all(_gap(letter, other, 0) >= 0 or _gap(letter, other, 1) >= 0 for other in kept):
            kept.append(letter)
    return np.array(kept, float).reshape(-1, 5)


def _letter_contrast(grey: Pixels, letter: Pixels) -> int:
    """Levels between a letter's darker pixels and the brighter ones around it; 0 if it is not as even as lettering."""
    near, far = (cv2.dilate(letter, np.ones(size, np.uint8)) for size in ((3, 3), (5, 5)))
    inside, outside = np.sort(grey[letter == 1]).astype(int), np.sort(grey[far > near]).astype(int)
    low, dim, middle, bright = (inside[len(inside) * twentieths // 20] for twentieths in (5, 6, 10, 16))
    if not len(outside) or middle < OVERLAY[1] or bright - dim > 40:
        return 0
    return int(low - outside[len(outside) * 3 // 4])


def _gap(one: Any, other: Any, axis: int) -> Any:
    """Pixels between boxes along an axis (0 across, 1 down); negative where they overlap."""
    ends = one[axis] + one[axis + 2], other[axis] + other[axis + 2]
    return np.maximum(one[axis], other[axis]) - np.minimum(*ends)


def _legibility(letters: Numbers, width: int, *, alone: bool) -> Numbers:
    """Contrast of each letter or, if that is less, of the clearest one beside it on the same line; 0 without any.

    If `alone` is set, a single letter counts at the left and right edge, where a word may have been cut, less 60.
    """
    left, top, across, height, contrast = boxes = letters.T
    low = top + height
    beside = _gap(boxes[:, :, None], boxes[:, None, :], 0) <= 20
    beside &= (abs(low[:, None] - low) <= 2) & (height[:, None] <= 1.6 * height) & (height <= 1.6 * height[:, None])
    np.fill_diagonal(beside, False)
    paired = np.minimum(contrast, (beside * contrast).max(axis=1, initial=0))
    at_edge = alone & ((left <= 20) | (left + across >= width - 20))
    return np.asarray(np.maximum(paired, np.where(at_edge, contrast - CLEAR, 0)))


def _near(letters: Numbers, crosses: Numbers) -> Mask:
    """Letters that belong to a cross: its number, or the cross itself."""
    away = np.abs(letters[:, None, :2] + letters[:, None, 2:4] / 2 - crosses[None, :, 1::-1])
    return np.asarray(np.any(np.max(away, axis=2) < 30, axis=1))


def _in_logo(letters: Numbers, width: int) -> Mask:
    """Letters where the scanner's mark stands."""
    left, top = letters[:, 0], letters[:, 1]
    return np.asarray((top < LOGO) & ((left < 0.25 * width) | (left > 0.9 * width)))
