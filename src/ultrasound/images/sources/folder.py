"""Anyone's own images: one folder a class, masks beside the images as in BUSI (`NAME.png`, `NAME_mask.png`).

DVC does not watch that folder: after a change there, run `dvc repro --force download`.
"""

from __future__ import annotations

from pathlib import Path

from ultrasound.errors import ParameterError
from ultrasound.images import catalog
from ultrasound.images.sources import Release
from ultrasound.sections import Data, Download

DESCRIPTION = (
    "Images of the user's own, from a folder. Nothing is known here about the women, the scanners or how the labels "
    "came to be: whoever passes this card on should add it."
)


def fetch(data: Data, download: Download, data_folder: Path, build_folder: Path) -> Release:
    """Use the images under `data.path` where they lie.

    Raises:
        ParameterError: `data.path` is not set or no folder.
        InputError: a class folder is missing or empty, or a file is no image.
    """
    if data.path is None or not Path(data.path).is_dir():
        raise ParameterError(f"data.path={data.path!r} is not a folder: data.source=folder needs the images' folder")
    folder = Path(data.path)
    return Release(folder, catalog.scan(folder, catalog.list_files(folder, data.classes)))
