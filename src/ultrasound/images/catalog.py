"""The table of images: what there is, where it lies, and the hash of every file's decoded pixels."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from ultrasound.errors import InputError
from ultrasound.images.preparation import lesion, open_image, pixel_hash

NORMAL = "normal"  # the class without a lesion
SEPARATOR = "|"  # between the masks of one image; no file name of a data set we know holds it
COLUMNS = ["image_id", "label", "image", "masks", "width", "height", "pixels", "mask_pixels"]
_MASK = re.compile(r"_mask(_\d+)?$")


class File(NamedTuple):
    """One decoded file. `path` is relative to the release, such as `benign/benign (1)_mask.png`."""

    path: str
    width: int
    height: int
    pixels: str  # SHA-256, see `pixel_hash`
    lesion_pixels: int  # 0 for images

    @property
    def is_mask(self) -> bool:
        """Whether the name ends in _mask, _mask_1, ..."""
        return _MASK.search(Path(self.path).stem) is not None

    @property
    def image_id(self) -> str:
        """`benign/benign (1)` for that image and for its masks."""
        path = Path(self.path)
        return f"{path.parent.as_posix()}/{_MASK.sub('', path.stem)}"


def list_files(folder: Path, classes: Sequence[str]) -> list[str]:
    """Relative paths of the PNG and JPEG files in the class folders of `folder`, sorted by class and number.

    Raises:
        InputError: a class folder is missing or empty.
    """
    paths: list[str] = []
    for label in classes:
        if not (folder / label).is_dir():
            raise InputError(
                f"class folder {folder / label} is missing: data.classes says {', '.join(classes)}, "
                "and each class needs a folder of that name"
            )
        found = [
            file.relative_to(folder).as_posix()
            for file in (folder / label).iterdir()
            if file.suffix.lower() in {".png", ".jpg", ".jpeg"} and not file.name.startswith(".")
        ]
        if not found:
            raise InputError(f"class folder {folder / label} holds no PNG or JPEG image")
        paths += sorted(found, key=_natural)
    return paths


def scan(folder: Path, paths: Sequence[str]) -> list[File]:
    """Decode every file with one process a core and a progress bar.

    Raises:
        InputError: a file is damaged, too large, or no image although its name says so.
    """
    jobs = [(str(folder), path) for path in paths]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(
            tqdm(pool.map(_scan_one, jobs, chunksize=8), "verify", len(jobs), unit="file", leave=False, disable=None)
        )


def table(folder: str, files: Iterable[File]) -> pd.DataFrame:
    """One row an image (`COLUMNS`), with the masks that belong to it.

    Args:
        folder: where the files lie, as it shall stand in the table (relative to the project's top folder).
        files: as `scan` returns them.

    Raises:
        InputError: a mask without an image, of another size, or empty although its image is of a lesion class; a
            lesion in a normal image; two images of one name.
    """
    files = list(files)
    images: dict[str, File] = {}
    masks: dict[str, list[File]] = {}
    for file in files:
        if file.is_mask:
            masks.setdefault(file.image_id, []).append(file)
        elif file.image_id in images:
            raise InputError(f"{file.path} and {images[file.image_id].path} in {folder} have the same name")
        else:
            images[file.image_id] = file
    if orphans := sorted(set(masks) - set(images)):
        raise InputError(f"{folder}/{masks[orphans[0]][0].path} is a mask without an image")
    return pd.DataFrame(
        (_row(folder, image_id, image, masks.get(image_id, [])) for image_id, image in images.items()), columns=COLUMNS
    )


def digest(catalog: pd.DataFrame) -> str:
    """16 hex digits that name the data: ids, labels and pixels, whatever the files' compression and place."""
    rows = catalog.sort_values("image_id")[["image_id", "label", "pixels", "mask_pixels"]]
    return hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()[:16]


def read(file: Path) -> pd.DataFrame:
    """Read a table that the download stage wrote.

    Raises:
        InputError: it is not there yet.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing: run `dvc repro` first")
    return pd.read_csv(file, dtype={"label": str}, keep_default_na=False)


def _scan_one(job: tuple[str, str]) -> File:
    folder, path = job
    image = open_image(Path(folder, path), f"{folder}/{path}")
    file = File(path, image.width, image.height, pixel_hash(image), 0)
    return file._replace(lesion_pixels=int(lesion(image).sum())) if file.is_mask else file


def _row(folder: str, image_id: str, image: File, masks: list[File]) -> tuple[str | int, ...]:
    label = Path(image.path).parent.as_posix()
    for mask in masks:
        name = f"{folder}/{mask.path}"
        if (mask.width, mask.height) != (image.width, image.height):
            raise InputError(
                f"{name} is {mask.width}x{mask.height}, but its image is {image.width}x{image.height}: "
                "a mask must have its image's size"
            )
        if label == NORMAL and mask.lesion_pixels:
            raise InputError(f"{name} marks a lesion in a normal image: correct the mask or the label")
        if label != NORMAL and not mask.lesion_pixels:
            raise InputError(f"{name} marks no lesion (no pixel above 127) in a {label} image: correct or remove it")
    return (
        image_id, label, f"{folder}/{image.path}", SEPARATOR.join(f"{folder}/{mask.path}" for mask in masks),
        image.width, image.height, image.pixels, SEPARATOR.join(mask.pixels for mask in masks),
    )  # fmt: skip


def _natural(path: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path)]
