"""Images of the same scan -> one group. A perceptual hash proposes pairs, a comparison of pixels confirms them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from ultrasound.images.preparation import open_image

THUMBNAIL = 64  # side of the thumbnails that are correlated, pixels


def near_duplicates(files: Sequence[str], hash_distance: int, correlation: float) -> list[tuple[int, int]]:
    """Find pairs of files that show the same scan, by position in `files`.

    Candidates differ in at most `hash_distance` of the 64 bits of their perceptual hash (Zauner 2010, of the
    `imagehash` package); of these, pairs whose thumbnails have a Pearson correlation of at least `correlation` are
    near-duplicates. Finds copies with small crops, other contrast or calipers; not mirrored or strongly cropped ones.
    """
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = tqdm(pool.map(_signature, files, chunksize=8), "compare", len(files), leave=False, disable=None)
        signatures = list(found)
    bits = np.array([hash_bits for hash_bits, _ in signatures], dtype=np.int16)
    thumbnails = np.array([thumbnail for _, thumbnail in signatures])
    agreeing = bits @ bits.T + (1 - bits) @ (1 - bits).T
    first, second = np.nonzero(np.triu(bits.shape[1] - agreeing <= hash_distance, k=1))
    confirmed = (thumbnails[first] * thumbnails[second]).sum(axis=1) >= correlation - 1e-6  # rounding
    return list(zip(first[confirmed].tolist(), second[confirmed].tolist(), strict=True))


def groups(count: int, pairs: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Number the connected components of `count` images joined by `pairs`: (count,), from 0 in order of first image."""
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    labels: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def _signature(file: str) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    grey = open_image(Path(file), file).convert("L")
    thumbnail = np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float32).ravel()
    thumbnail -= thumbnail.mean()
    return imagehash.phash(grey).hash.ravel(), thumbnail / max(float(np.linalg.norm(thumbnail)), 1e-6)
