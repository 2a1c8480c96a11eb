"""What an image looks like in keypoints, and which images are worth a comparison.

1. `signature`: upright SIFT keypoints (Lowe, IJCV 60:91-110, 2004) of the speckle and the tissue borders, with root
   normalisation (Arandjelovic and Zisserman, CVPR 2012). Burnt-in marks and lettering give none. A mirrored image
   needs no second look: its descriptors are a permutation.
2. `candidates`: a bag of visual words (Sivic and Zisserman, ICCV 2003) gives each image its few nearest others, so
   that no step compares all pairs of images in full. `matching` does that with the few.

Processors add in different orders. So that all find the same, descriptors are whole numbers, whose sums are exact.
"""

from __future__ import annotations

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
DARK = 6  # grey values up to this tell nothing of tissue
ONE = 4080  # length of a descriptor; even lengthened by rounding, products of two add up to less than 2**24
# A SIFT descriptor is 4 rows x 4 columns x 8 directions; a mirror turns columns around and directions over.
MIRROR = np.arange(128).reshape(4, 4, 8)[:, ::-1, (4 - np.arange(8)) % 8].ravel()

Grey = NDArray[np.uint8]
Floats = NDArray[np.float32]


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


def signature(grey: Grey, marks: NDArray[np.bool_]) -> Signature:
    """Describe one image: (h, w) uint8, with `marks` (h, w) where something is burnt in."""
    image, clean = reduced(grey, marks)
    points, descriptors = described(image, clean)
    return Signature(
        np.array([(*point.pt, point.size) for point in points], np.float32).reshape(-1, 3),
        root(descriptors),
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


def described(image: Grey, clean: NDArray[np.bool_]) -> tuple[Sequence[cv2.KeyPoint], Grey]:
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


def in_mirror(image: Signature) -> Signature:
    """The signature of the mirror image."""
    across = image.grey.shape[1] - 1 - image.points[:, 0]
    points = np.stack([across, image.points[:, 1], image.points[:, 2]], axis=1)
    return Signature(points, image.descriptors[:, MIRROR], image.grey[:, ::-1], image.tissue[:, ::-1])


def vocabulary() -> Floats:
    """Visual words: (4096, 128), of length `ONE`.

    They are descriptors of phantoms, which `scripts/visual_words.py` has drawn: of scans that are no part of a data
    set, so that what is proposed for two images depends on these two, but for others that are still more alike, and not
    on which images there are besides. They are kept in a file because no two kinds of processor draw the same phantoms
    to the last pixel.
    """
    with np.load(WORDS) as file:
        return root(file["words"]).astype(np.float32)


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


def root(descriptors: Grey) -> NDArray[np.int16]:
    """Square roots of descriptors (k, 128) as shares of their sums, of length `ONE`."""
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
