"""Do two images show the same scan? Keypoints propose and align, the tissue under the alignment decides.

1. `signature`: upright SIFT keypoints (Lowe, IJCV 60:91-110, 2004) of the speckle and the tissue borders, with root
   normalisation (Arandjelovic and Zisserman, CVPR 2012). Burnt-in marks and lettering give none. A mirrored image
   needs no second look: its descriptors are a permutation.
2. `candidates`: a bag of visual words (Sivic and Zisserman, ICCV 2003) gives each image its few nearest others, so
   that no step compares all pairs of images in full.
3. `compare`: RANSAC finds shift and scale under which keypoints agree, ECC (Evangelidis and Psarakis, IEEE PAMI
   30:1858-1865, 2008) refines it, and the correlation of the tissue where both images have some is the evidence.

Processors add in different orders. So that all find the same, descriptors are whole numbers, whose sums are exact; what
numpy sums besides is in double precision, where another order changes nothing that is kept; OpenCV's own sums have one
order where its code for single processors is off, as `duplicates` has it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.preprocessing import normalize

SIDE = 210  # long side at which images are compared, pixels; finer speckle changes from frame to frame
KEYPOINTS = 200  # per image, the most contrasted
WORDS = Path(__file__).with_name("words.npz")
VOTES = 3  # words that a keypoint votes for, the nearest
NEIGHBOURS = 60  # candidates per image, and again as many mirrored
ALIGNMENTS, PROPOSERS = 3, 5  # alignments tried of one pair, and how many keypoints must propose one
RADIUS = 3.5  # keypoints that agree with an alignment lie so close, pixels
FAINT = 0.1  # correlation under the keypoints' alignment below which there is nothing to improve
SCALES = (0.6, 1.7)  # of one image in the other; beyond, few keypoints align by chance
STRETCH = 1.35  # most that one axis may be scaled more than the other
# Another frame of a lesion comes from the same scanner, usually at the same depth, and its layers lie as they lay. What
# correlates less than CLEAR must therefore align without much change of scale or tilt of the layers, and over half.
CLEAR, VIEW_SCALES, TILT, VIEW_OVERLAP = 0.6, (0.88, 1.14), 0.06, 0.5
DARK = 6  # grey values up to this tell nothing of tissue
FINE, COARSE = (0.8, 3.0), (2.0, 8.0)  # pass bands, sigma in pixels: speckle; tissue and lesion
ONE = 4080  # length of a descriptor; even lengthened by rounding, products of two add up to less than 2**24
# A SIFT descriptor is 4 rows x 4 columns x 8 directions; a mirror turns columns around and directions over.
MIRROR = np.arange(128).reshape(4, 4, 8)[:, ::-1, (4 - np.arange(8)) % 8].ravel()

Grey = NDArray[np.uint8]
Floats = NDArray[np.float32]
Places = NDArray[np.float64]  # (m, 3): x, y and size of keypoints
Alignment = NDArray[np.float64]  # (2, 3): x and y of one image -> x and y of the other


class Signature(NamedTuple):
    """What is kept of an image of long side `SIDE`.

    Attributes:
        points: (k, 3) keypoints: x, y and size.
        descriptors: (k, 128) theirs, of length `ONE`.
        grey: (h, w) the image.
        tissue: (h, w) bool, where it is neither black nor burnt-in mark.
    """

    points: Floats
    descriptors: NDArray[np.int16]
    grey: Grey
    tissue: NDArray[np.bool_]


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


def signature(grey: Grey, marks: NDArray[np.bool_]) -> Signature:
    """Describe one image: (h, w) uint8, with `marks` (h, w) where something is burnt in."""
    image, clean = reduced(grey, marks)
    points, descriptors = keypoints(image, clean)
    return Signature(
        np.array([(*point.pt, point.size) for point in points], np.float32).reshape(-1, 3),
        _root(descriptors),
        image,
        (image > DARK) & clean,
    )


def reduced(grey: Grey, marks: NDArray[np.bool_]) -> tuple[Grey, NDArray[np.bool_]]:
    """An image of long side `SIDE`, and where nothing is burnt in."""
    scale = SIDE / max(grey.shape)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    image = cv2.resize(grey, size, interpolation=interpolation)
    return np.asarray(image), cv2.resize(marks.astype(np.float32), size, interpolation=cv2.INTER_AREA) < 0.1


def keypoints(image: Grey, clean: NDArray[np.bool_]) -> tuple[Sequence[cv2.KeyPoint], Grey]:
    """The keypoints of a reduced image where it is `clean`, and their SIFT descriptors: (k, 128)."""
    # Of a copy with other gain the keypoints stay, and speckle gives none.
    even = cv2.createCLAHE(2.0, (4, 4)).apply(cv2.GaussianBlur(image, (0, 0), 1))
    sift = cv2.SIFT.create(nfeatures=KEYPOINTS, contrastThreshold=0.01, edgeThreshold=20)
    upright: dict[tuple[float, ...], cv2.KeyPoint] = {}
    for point in sift.detect(even, clean.astype(np.uint8)):
        point.angle = 0  # scans are not rotated, and without directions less agrees by chance
        upright.setdefault((round(point.pt[0], 1), round(point.pt[1], 1), round(point.size, 1)), point)
    points, descriptors = sift.compute(even, list(upright.values())[:KEYPOINTS]) if upright else ((), None)
    return points, np.zeros((0, 128), np.uint8) if descriptors is None else descriptors.astype(np.uint8)


def vocabulary() -> Floats:
    """Visual words: (4096, 128), of length `ONE`.

    They are descriptors of phantoms, which `scripts/visual_words.py` has drawn: of scans that are no part of a data
    set, so that what is proposed for two images depends on these two, but for others that are still more alike, and not
    on which images there are besides. They are kept in a file because no two kinds of processor draw the same phantoms
    to the last pixel.
    """
    with np.load(WORDS) as file:
        return _root(file["words"]).astype(np.float32)


def candidates(signatures: Sequence[Signature]) -> list[tuple[int, int, bool]]:
    """Pairs worth a comparison: (first, second, mirrored), sorted, first < second.

    Cost per image does not grow with their number, but for the look-up among sparse vectors, and where more than
    `NEIGHBOURS` images have the very same words. Images that share no word are no candidates.
    """
    words = vocabulary()
    counts = [len(signature.descriptors) for signature in signatures]
    descriptors = np.concatenate([signature.descriptors for signature in signatures])
    if len(signatures) < 2 or not len(descriptors):
        return []
    image = np.repeat(np.arange(len(signatures)), np.multiply(counts, VOTES))
    bags, mirrored = (
        # The square root keeps a word that stands there often from outweighing the others.
        normalize(csr_array(
            (np.ones(len(image)), (image, _nearest(descriptors, which))), shape=(len(signatures), len(words))
        ).sqrt())
        for which in (words, words[:, MIRROR])  # which is as if the images were
    )  # fmt: skip
    found = {
        (min(one, other), max(one, other), flipped)
        for flipped, query in ((False, bags), (True, mirrored))
        for one, other in _neighbours(query, bags)
        if one != other
    }
    return sorted(found)


def _neighbours(query: csr_array, bags: csr_array) -> Iterator[tuple[int, int]]:
    """Each row of `query` with the `NEIGHBOURS` of `bags` of the greatest cosine, itself besides, and their equals."""
    count, turned = min(NEIGHBOURS + 1, bags.shape[0]), bags.T.tocsr()
    for start in range(0, query.shape[0], 1024):
        alike = (query[start : start + 1024] @ turned).toarray()
        # Which of equals a sort puts first differs between processors.
        least = np.partition(alike, -count, axis=1)[:, -count, None]
        for one, other in np.argwhere((alike >= least) & (alike > 0)).tolist():
            yield start + one, other


def compare(one: Signature, other: Signature, inliers: int, *, mirrored: bool) -> Match | None:
    """Align two images, `one` turned left to right if `mirrored`, and correlate them; the order is no matter.

    Args:
        inliers: fewest keypoints that must agree.

    Returns:
        The evidence, or None where no plausible alignment has so many inliers.
    """
    if mirrored:
        one = _mirrored(one)
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


def _mirrored(image: Signature) -> Signature:
    across = image.grey.shape[1] - 1 - image.points[:, 0]
    points = np.stack([across, image.points[:, 1], image.points[:, 2]], axis=1)
    return Signature(points, image.descriptors[:, MIRROR], image.grey[:, ::-1], image.tissue[:, ::-1])


def _root(descriptors: Grey) -> NDArray[np.int16]:
    sums = np.maximum(descriptors.sum(axis=1, keepdims=True, dtype=np.float32), 1)
    return np.asarray(np.rint(ONE * np.sqrt(descriptors / sums)), np.int16)


def _nearest(descriptors: NDArray[np.int16], words: Floats) -> NDArray[np.int64]:
    """The `VOTES` words nearest to each descriptor, one after the other: (k * VOTES,)."""
    found = np.empty((len(descriptors), VOTES), np.int64)
    for start in range(0, len(descriptors), 1024):
        alike = descriptors[start : start + 1024].astype(np.float32) @ words.T
        for vote in range(VOTES):  # of equals the first, which numpy's partition would not promise
            found[start : start + 1024, vote] = best = alike.argmax(axis=1)
            alike[np.arange(len(alike)), best] = -1
    return found.ravel()


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
