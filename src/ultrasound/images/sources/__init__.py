"""One module a source of images.

Each exposes `fetch(data, download, data_folder, build_folder) -> Release`, and `DESCRIPTION`: where its images come
from and what they cannot tell, as a model card says it.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
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
    release: Release = _module(data.source).fetch(data, download, data_folder, build_folder)
    return release


def description(source: str) -> str:
    """Where the images of a source come from, and what they cannot tell: sentences.

    Raises:
        ParameterError: there is no such source.
    """
    return str(_module(source).DESCRIPTION)


def _module(source: str) -> ModuleType:
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    if source not in known:
        raise ParameterError(f"data.source={source!r} is not possible: sources are {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{source}")
