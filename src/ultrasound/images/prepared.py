"""The prepared data on disk: images.npy, masks.npy, samples.csv, prepared.json in one folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ultrasound.errors import InputError
from ultrasound.images import catalog, splitting
from ultrasound.images.preparation import Pixels, Preparation, open_image, pixel_hash


class Prepared(NamedTuple):
    """Prepared images and what is known of each.

    Attributes:
        images: (n, size, size) uint8, memory-mapped.
        masks: (n, size, size) bool, memory-mapped; empty where there is no lesion or no mask.
        samples: one row an image in the same order, the columns of build/splits.csv and `outlined`: whether it is
            known where its lesion is: it has a mask, be it empty, or is of the class without a lesion.
        preparation: how the images were made from the files.
        data_digest, split_digest: what names the data and the split.
    """

    images: Pixels
    masks: NDArray[np.bool_]
    samples: pd.DataFrame
    preparation: Preparation
    data_digest: str
    split_digest: str

    def rows(self, split: str, fold: int | None = None, *, without: bool = False) -> NDArray[np.int64]:
        """Positions of the images of a split, or of one fold of it, or of all but that fold (`without`)."""
        chosen = self.samples["split"] == split
        if fold is not None:
            chosen &= (self.samples["fold"] != fold) if without else (self.samples["fold"] == fold)
        return np.flatnonzero(chosen)


def write(
    table: pd.DataFrame,
    splits: pd.DataFrame,
    preparation: Preparation,
    folder: Path,
    verified: Mapping[str, str] | None = None,
) -> Prepared:
    """Prepare every image of the catalogue with one process a core, and save all as `folder`, which is replaced.

    Args:
        table: the catalogue.
        splits: the split of the same images, in the same order.
        verified: file -> its pixel hash, where that is known; all others are hashed.

    Raises:
        InputError: the two tables differ, or a file has changed since the download stage verified it.
    """
    if table["image_id"].tolist() != splits["image_id"].tolist():
        raise InputError("build/catalog.csv and build/splits.csv hold different images: run `dvc repro`")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    shape = (len(table), preparation.size, preparation.size)
    try:
        for name, kind in (("images", np.uint8), ("masks", np.bool_)):
            np.lib.format.open_memmap(unfinished / f"{name}.npy", "w+", kind, shape).flush()
        jobs = [(preparation, *job) for job in enumerate(table.to_dict("records"))]
        with ProcessPoolExecutor(
            os.cpu_count(), initializer=_open_arrays, initargs=(unfinished, verified or {})
        ) as pool:
            results = pool.map(_prepare_one, jobs, chunksize=8)
            for _ in tqdm(results, "prepare", len(jobs), leave=False, disable=None):
                pass
        # Where there is no lesion nobody needs to say so with an empty mask.
        samples = splits.assign(outlined=((table["masks"] != "") | (table["label"] == catalog.NORMAL)).to_numpy())
        samples.to_csv(unfinished / "samples.csv", index=False)
        facts = {
            "preparation": dataclasses.asdict(preparation),
            "data_digest": catalog.digest(table),
            "split_digest": splitting.digest(splits),
        }
        (unfinished / "prepared.json").write_text(json.dumps(facts, indent=2) + "\n")
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    return read(folder)


def read(folder: Path) -> Prepared:
    """Open what `write` saved, without reading the pixels.

    Raises:
        InputError: it is not there, or its parts do not fit together.
    """
    if not (folder / "prepared.json").is_file():
        raise InputError(f"{folder} holds no prepared images: run `dvc repro` first")
    try:
        facts = json.loads((folder / "prepared.json").read_text())
        images, masks = (np.load(folder / name, mmap_mode="r") for name in ("images.npy", "masks.npy"))
        samples = splitting.read(folder / "samples.csv")
        preparation = Preparation(**facts["preparation"])
        if not images.shape == masks.shape == (len(samples), preparation.size, preparation.size):
            raise ValueError("its arrays and its table differ")
        return Prepared(images, masks, samples, preparation, facts["data_digest"], facts["split_digest"])
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} is damaged ({error}): run `dvc repro --force preprocess`") from None


_arrays: dict[str, NDArray[Any]] = {}  # in a worker, which writes its images itself
_verified: Mapping[str, str] = {}


def _open_arrays(folder: Path, verified: Mapping[str, str]) -> None:
    global _verified
    _verified = verified
    _arrays.update({name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("images", "masks")})


def _prepare_one(job: tuple[Preparation, int, dict[str, str]]) -> None:
    preparation, position, row = job
    image = _open_verified(row["image"], row["pixels"])
    pairs = zip(row["masks"].split(catalog.SEPARATOR), row["mask_pixels"].split(catalog.SEPARATOR), strict=True)
    masks = [_open_verified(file, pixels) for file, pixels in pairs if file]
    _arrays["images"][position] = preparation.grey(image)
    _arrays["masks"][position] = preparation.mask(masks, image)


def _open_verified(file: str, expected: str) -> Image.Image:
    image = open_image(Path(file), file)
    if (_verified.get(file) or pixel_hash(image)) != expected:
        raise InputError(f"{file} has changed since it was verified: restore it, or run `dvc repro --force download`")
    return image
