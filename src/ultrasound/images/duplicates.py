"""Images of the same scan -> one group, and the evidence for every pair."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ultrasound.images import keypoints, matching
from ultrasound.images.keypoints import Signature
from ultrasound.images.matching import Match
from ultrasound.images.overlay import marks
from ultrasound.images.preparation import open_image

IDENTICAL, COPY, SAME_VIEW = "identical", "copy", "same view"  # pixel for pixel; the same speckle; another frame
SPECKLE = 0.85  # correlation of the finest structures from which two images are copies of one frame
LARGEST = 20  # pairs of the same view do not join groups beyond so many images
T = TypeVar("T")
TYPES = {"first": str, "second": str, "method": str, "inliers": int, "overlap": float, "correlation": float,
         "speckle": float, "mirrored": bool, "joined": bool}  # fmt: skip
COLUMNS = [*TYPES]


def near_duplicates(catalog: pd.DataFrame, inliers: int, correlation: float) -> pd.DataFrame:
    """Find pairs of images that show the same scan, or the same view of one lesion some seconds later.

    Found are copies that were cropped, rescaled, mirrored, compressed, annotated or brightened; see `matching` for
    the method. Two images that share lettering or calipers alone are no pair.

    Args:
        catalog: the table of images (`image_id`, `image`, `pixels`).
        inliers: fewest keypoints that must agree with one alignment.
        correlation: least correlation of the tissue under it.

    Returns:
        `COLUMNS`, the surest pairs first. `joined` is False where a pair would have chained groups together to more
        than `LARGEST` images; see `groups`.

    Raises:
        InputError: a file is missing or damaged.
    """
    names, files = catalog["image_id"].tolist(), catalog["image"].tolist()
    with ProcessPoolExecutor(os.cpu_count(), initializer=compute_alike) as pool:
        signatures = _watched(pool.map(_signature, files, chunksize=8), "describe", len(files))
    proposed = keypoints.candidates(signatures)

    with ProcessPoolExecutor(os.cpu_count(), initializer=_keep, initargs=(signatures,)) as pool:
        jobs = ((*pair, inliers) for pair in proposed)
        matches = _watched(pool.map(_compare, jobs, chunksize=256), "compare", len(proposed))
    same = pd.Series(range(len(catalog))).groupby(catalog["pixels"].to_numpy())
    identical = (IDENTICAL, Match(0, 1.0, 1.0, 1.0), False)
    found = {pair: identical for _, rows in same for pair in combinations(rows.tolist(), 2)}
    for (first, second, mirrored), match in zip(proposed, matches, strict=True):
        if match and match.correlation >= correlation:
            known, evidence, _ = found.get((first, second), ("", None, False))
            method = IDENTICAL if known == IDENTICAL else COPY if match.speckle >= SPECKLE else SAME_VIEW
            if not evidence or not evidence.inliers or match.correlation > evidence.correlation:
                found[first, second] = (method, match, mirrored)
    table = pd.DataFrame(
        [
            (names[first], names[second], method, *match, mirrored)
            for (first, second), (method, match, mirrored) in found.items()
        ],
        columns=COLUMNS[:-1],
    ).round({"overlap": 3, "correlation": 3, "speckle": 3})
    rank = table["method"].map({IDENTICAL: 0, COPY: 1, SAME_VIEW: 2})
    table = table.assign(rank=rank).sort_values(["rank", "correlation", "first", "second"],
                                                ascending=[True, False, True, True])  # fmt: skip
    table = table.drop(columns="rank").reset_index(drop=True)
    return table.assign(joined=_joined(table)).astype(TYPES)  # of an empty table, too


def groups(names: Sequence[str], pairs: pd.DataFrame) -> NDArray[np.int64]:
    """Number the connected components of images under the pairs that are `joined`: (n,), from 0 by first image."""
    sets = DisjointSet(names)
    for pair in pairs[pairs["joined"]].itertuples():
        sets.merge(pair.first, pair.second)
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(sets[name], len(numbers)) for name in names], dtype=np.int64)


def _joined(pairs: pd.DataFrame) -> list[bool]:
    # Copies are one scan and always join. Views resemble each other without end along a sweep of the probe, so the
    # surest join first, and none joins two groups to a giant one.
    sets = DisjointSet({*pairs["first"], *pairs["second"]})
    joined = []
    for pair in pairs.itertuples():
        size = sets.subset_size(pair.first) + sets.subset_size(pair.second)
        join = pair.method != SAME_VIEW or sets.connected(pair.first, pair.second) or size <= LARGEST
        joined.append(bool(join))
        if join:
            sets.merge(pair.first, pair.second)
    return joined


def _signature(file: str) -> Signature:
    grey = np.asarray(open_image(Path(file), file).convert("L"))
    return keypoints.signature(grey, marks(grey))


_kept: Sequence[Signature] = ()  # in a worker: sent once, as every image is compared many times


def compute_alike() -> None:
    """Let OpenCV compute in this process as it does on other machines."""
    # It rounds otherwise with AVX2 than with AVX-512, enough to divide the folds of BUSI anew; without its code for
    # single processors all of x86 find the same, in hardly more time.
    cv2.setUseOptimized(False)


def _keep(signatures: Sequence[Signature]) -> None:
    global _kept
    _kept = signatures
    compute_alike()
    threadpool_limits(1)  # there is a process a core already


def _compare(job: tuple[int, int, bool, int]) -> Match | None:
    first, second, mirrored, inliers = job
    return matching.compare(_kept[first], _kept[second], inliers, mirrored=mirrored)


def _watched(results: Iterable[T], what: str, count: int) -> list[T]:
    return list(tqdm(results, what, count, unit="image" if what == "describe" else "pair", leave=False, disable=None))
