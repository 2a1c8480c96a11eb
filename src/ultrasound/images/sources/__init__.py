"""One module a source of images. Each exposes `fetch(data, download, data_folder, build_folder) -> Release`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import NamedTuple

from ultrasound.errors import ParameterError
from ultrasound.images.catalog import File
from ultrasound.sections import Data, Download


class Release(NamedTuple):
    """A folder of class folders, every file of which has been decoded."""

    folder: Path
    files: list[File]


def fetch(data: Data, download: Download, data_folder: Path, build_folder: Path) -> Release:
    """Get the release that `data.source` names.

    Args:
        data_folder: where the published release lives.
        build_folder: where a source puts images that it makes.

    Raises:
        ParameterError: there is no such source.
        InputError: the source could not be had, or is not what it should be.
    """
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    if data.source not in known:
        raise ParameterError(f"data.source={data.source!r} is not possible: sources are {', '.join(known)}")
    module = importlib.import_module(f"{__name__}.{data.source}")
    release: Release = module.fetch(data, download, data_folder, build_folder)
    return release
