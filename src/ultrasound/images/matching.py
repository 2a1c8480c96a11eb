"""Do two images show the same scan? Keypoints align them, the tissue under the alignment decides.

RANSAC finds shift and scale under which keypoints agree, ECC (Evangelidis and Psarakis, IEEE PAMI 30:1858-1865, 2008)
refines it, and the correlation of the tissue where both images have some is the evidence.

What numpy sums is in double precision, where the processor's order of adding changes nothing that is kept; OpenCV's own
sums have one order where its code for single processors is off, as `duplicates` has it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ultrasound.images.keypoints import ONE, Floats, Signature, in_mirror

ALIGNMENTS, PROPOSERS = 3, 5  # alignments tried of one pair, and how many keypoints must propose one
RADIUS = 3.5  # keypoints that agree with an alignment lie so close, pixels
FAINT = 0.1  # correlation under the keypoints' alignment below which there is nothing to improve
SCALES = (0.6, 1.7)  # of one image in the other; beyond, few keypoints align by chance
STRETCH = 1.35  # most that one axis may be scaled more than the other
# Another frame of a lesion comes from the same scanner, usually at the same depth, and its layers lie as they lay. What
# correlates less than CLEAR must therefore align without much change of scale or tilt of the layers, and over half.
CLEAR, VIEW_SCALES, TILT, VIEW_OVERLAP = 0.6, (0.88, 1.14), 0.06, 0.5
FINE, COARSE = (0.8, 3.0), (2.0, 8.0)  # pass bands, sigma in pixels: speckle; tissue and lesion

Places = NDArray[np.float64]  # (m, 3): x, y and size of keypoints
Alignment = NDArray[np.float64]  # (2, 3): x and y of one image -> x and y of the other


class Match(NamedTuple):
    """Evidence that two images show the same.

    Attributes:
        inliers: keypoints that agree with the alignment.
        overlap: share of the smaller image that lies within the other.
        correlation: of the tissue in the overlap, coarse structures (-1..1).
        speckle: the same of the finest structures.
    """

    inliers: int
    overlap: float
    correlation: float
    speckle: float


def compare(one: Signature, other: Signature, inliers: int, *, mirrored: bool) -> Match | None:
    """Align two images, `one` turned left to right if `mirrored`, and correlate them; the order is no matter.

    Args:
        inliers: fewest keypoints that must agree.

    Returns:
        The evidence, or None where no plausible alignment has so many inliers.
    """
    if mirrored:
        one = in_mirror(one)
    here, there = _correspondences(one, other)
    bands = _Bands(one), _Bands(other)
    both = [*_matches(*bands, here, there, inliers), *_matches(*bands[::-1], there, here, inliers)]
    return max(both, key=lambda match: (match.correlation, match), default=None)


class _Bands:
    """An image's structures of two sizes, each made when it is first asked for."""

    def __init__(self, image: Signature) -> None:
        self.image = image

    @functools.cached_property
    def coarse(self) -> Floats:
        return _band(self.image, COARSE)

    @functools.cached_property
    def fine(self) -> Floats:
        return _band(self.image, FINE)


def _matches(one: _Bands, other: _Bands, here: Places, there: Places, inliers: int) -> Iterator[Match]:
    """Evidence under each plausible alignment of `one` with `other`."""
    grey, target = one.image.grey, other.image.grey
    for alignment in _alignments(here, there):
        refined, correlation, shared = _refine(
            alignment, one.coarse, other.coarse, one.image.tissue, other.image.tissue
        )
        scale = np.sqrt(abs(np.linalg.det(refined[:, :2])))
        covered = _warp(np.ones(grey.shape, np.float32), refined, target.shape).sum(dtype=np.float64)
        overlap = min(1.0, float(covered / min(grey.size * scale**2, target.size)))
        is_view = VIEW_SCALES[0] < scale < VIEW_SCALES[1] and abs(refined[1, 0]) < TILT and overlap > VIEW_OVERLAP
        agreeing = int(_agree(here, there, refined, RADIUS).sum())
        if agreeing >= inliers and (is_view or correlation >= CLEAR):
            fine = _warp(one.fine, refined, target.shape)
            yield Match(agreeing, overlap, correlation, _correlation(fine, other.fine, shared))


def _correspondences(one: Signature, other: Signature) -> tuple[Places, Places]:
    """Keypoints that are each other's nearest, and clearly nearer than one's next: (m, 3) in both images."""
    if min(len(one.points), len(other.points)) < 2:
        return np.zeros((0, 3)), np.zeros((0, 3))
    alike = one.descriptors.astype(np.float32) @ other.descriptors.astype(np.float32).T
    rows, nearest, back = np.arange(len(alike)), alike.argmax(axis=1), alike.argmax(axis=0)
    mutual = rows[back[nearest] == rows]
    pairs = mutual, nearest[mutual]
    apart = np.maximum(ONE**2 - alike[pairs], 0)  # half of the squared distance, were it not for the rounding
    alike[pairs] = -1
    next_apart = np.maximum(ONE**2 - np.minimum(alike[pairs[0]].max(axis=1), alike[:, pairs[1]].max(axis=0)), 0)
    clear = (apart < 0.81 * next_apart) & (apart < ONE**2 / 4)
    return one.points[pairs[0][clear]].astype(np.float64), other.points[pairs[1][clear]].astype(np.float64)


def _agree(here: Places, there: Places, alignment: Alignment, radius: float) -> NDArray[np.bool_]:
    off = np.abs(here[:, :2] @ alignment[:, :2].T + alignment[:, 2] - there[:, :2])
    return np.asarray((off < radius).all(axis=1))


def _alignments(here: Places, there: Places) -> Iterator[Alignment]:
    """Yield shifts and scales that several correspondences agree with, the best first.

    RANSAC draws samples because there are too many to try; of one correspondence each, all can be tried.
    """
    for _ in range(ALIGNMENTS):
        if len(here) < PROPOSERS:
            return
        scale = there[:, 2] / here[:, 2]
        votes = np.repeat(((scale > SCALES[0] / 1.2) & (scale < SCALES[1] * 1.2))[:, None], len(here), axis=1)
        for axis in (0, 1):
            shift = there[:, axis] - scale * here[:, axis]
            votes &= np.abs(scale[:, None] * here[:, axis] + shift[:, None] - there[:, axis]) < 2 * RADIUS
        agreeing = np.asarray(votes[votes.sum(axis=1).argmax()])
        alignment: Alignment = np.zeros((2, 3))
        for radius in (1.5 * RADIUS, RADIUS, RADIUS):
            if agreeing.sum() < PROPOSERS or (np.ptp(here[agreeing, :2], axis=0) < 4 * RADIUS).any():
                return
            for axis in (0, 1):
                alignment[axis, [axis, 2]] = _line(here[agreeing, axis], there[agreeing, axis])
            agreeing = _agree(here, there, alignment, radius)
        across, down = alignment[0, 0], alignment[1, 1]
        small, large = min(across, down), max(across, down)
        if agreeing.sum() >= PROPOSERS and SCALES[0] < small and large < SCALES[1] and large < STRETCH * small:
            yield alignment
        here, there = here[~agreeing], there[~agreeing]


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and height at 0 of the line through points (m,), by least squares."""
    away = x - x.mean()
    slope = float(away @ y / (away @ away))
    return slope, float(y.mean() - slope * x.mean())


def _refine(
    alignment: Alignment, image: Floats, target: Floats, mask: NDArray[np.bool_], target_mask: NDArray[np.bool_]
) -> tuple[Alignment, float, NDArray[np.bool_]]:
    """Improve an alignment where that is possible: it, the correlation under it, and where both have tissue."""

    def score(of: Alignment) -> tuple[float, NDArray[np.bool_]]:
        shared = (_warp(mask.astype(np.float32), of, target.shape) > 0.5) & target_mask
        return _correlation(_warp(image, of, target.shape), target, shared), shared

    correlation, shared = score(alignment)
    if correlation < FAINT:
        return alignment, correlation, shared
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-3)
    start = cv2.invertAffineTransform(alignment).astype(np.float32)
    try:
        # OpenCV's type hints know images of integers only.
        _, inverse = cv2.findTransformECC(target, image, start, cv2.MOTION_AFFINE, stop, None, 3)  # type: ignore[call-overload]
    except cv2.error as error:
        if error.code != cv2.Error.StsNoConv:
            raise
        # It did not converge: the keypoints' alignment stands.
        return alignment, correlation, shared
    refined = np.asarray(cv2.invertAffineTransform(inverse), np.float64)
    better, where = score(refined)
    if better > correlation and np.abs(refined[:, :2] - alignment[:, :2]).max() < 0.2:
        return refined, better, where
    return alignment, correlation, shared


def _band(image: Signature, sigmas: tuple[float, float]) -> Floats:
    """Structures between two sizes, brought to the same strength everywhere; zero where there is no tissue."""
    grey, weight = np.ascontiguousarray(image.grey, np.float32), np.ascontiguousarray(image.tissue, np.float32)
    passed = cv2.GaussianBlur(grey, (0, 0), sigmas[0]) - cv2.GaussianBlur(grey, (0, 0), sigmas[1])
    around = cv2.GaussianBlur(weight, (0, 0), 8) + 1e-3
    centred = (passed - cv2.GaussianBlur(passed * weight, (0, 0), 8) / around) * weight
    return np.asarray(centred / (np.sqrt(cv2.GaussianBlur(centred**2, (0, 0), 8) / around) + 2), np.float32)


def _warp(image: Floats, alignment: Alignment, shape: tuple[int, ...]) -> Floats:
    return np.asarray(cv2.warpAffine(np.ascontiguousarray(image), alignment, (shape[1], shape[0])))


def _correlation(image: Floats, target: Floats, where: NDArray[np.bool_]) -> float:
    if where.sum() < 0.02 * where.size:
        return 0.0
    one, other = image[where].astype(np.float64), target[where].astype(np.float64)
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / max(np.sqrt((one**2).sum() * (other**2).sum()), 1e-9))
