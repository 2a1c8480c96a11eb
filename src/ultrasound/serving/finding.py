"""Which files of a folder are images to answer to."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ultrasound.errors import InputError
from ultrasound.serving.journal import Stamp

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
DICOM, DICOM_AT = b"DICM", 128  # what a DICOM file has in front of its data, and where


class Scan(NamedTuple):
    """A file: the name in the table, its place, size and time of change."""

    name: str
    file: Path
    stamp: Stamp


@dataclasses.dataclass(frozen=True)
class Found:
    """The images of a folder, and how many files of which kind are not among them."""

    folder: Path
    scans: list[Scan]
    skipped: Counter[str]


def find(folder: Path) -> Found:
    """Find PNG, JPEG and DICOM files in a folder and those within it, in the order of their names; or take one file.

    Hidden files and masks as BUSI has them (`NAME_mask.png`, `NAME_mask_1.png`) are left out.

    Raises:
        InputError: there is no such folder, it cannot be listed, or there is no image in it.
    """
    if folder.is_file():
        return Found(folder.parent.resolve(), [_scan(folder, folder.name)], Counter())
    if not folder.is_dir():
        raise InputError(f"{folder} is neither a folder nor a file")
    scans, skipped = [], Counter[str]()
    for file in _files(folder):
        kind = _kind(file, file.relative_to(folder))
        if kind == "image":
            scans.append(_scan(file, str(file.relative_to(folder))))
        else:
            skipped[kind] += 1
    if not scans:
        raise InputError(f"{folder} holds no PNG, JPEG or DICOM file{in_words(skipped, ', only ')}")
    return Found(folder.resolve(), scans, skipped)


def _files(folder: Path) -> Iterator[Path]:
    """All files within, sorted; what cannot be listed is an error, not an empty folder."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed: {error.strerror}")

    files = [Path(base, name) for base, _, names in os.walk(folder, onerror=refuse) for name in names]
    return (file for file in sorted(files) if file.is_file())


def _kind(file: Path, relative: Path) -> str:
    """`image`, or why a file is none."""
    if any(part.startswith(".") for part in relative.parts):
        return "hidden"
    suffix = file.suffix.lower()
    if suffix == ".png" and "_mask" in file.stem.lower():
        return "mask"
    return "image" if suffix in SUFFIXES or (not suffix and _is_dicom(file)) else "other"


def _is_dicom(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(DICOM_AT + len(DICOM))[DICOM_AT:] == DICOM
    except OSError:
        return True  # it may be one: the table tells that it cannot be read


def _scan(file: Path, name: str) -> Scan:
    stat = file.stat()
    # A name that is no valid UTF-8 fits into no table.
    return Scan(os.fsencode(name).decode("utf-8", "backslashreplace"), file, (stat.st_size, stat.st_mtime_ns))


def in_words(skipped: Counter[str], before: str) -> str:
    """What was left out, behind `before`; nothing if nothing was."""
    return before + ", ".join(f"{number} {kind}" for kind, number in sorted(skipped.items())) if skipped else ""
