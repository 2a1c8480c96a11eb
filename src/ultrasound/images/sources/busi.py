"""BUSI, the Breast Ultrasound Images data set (Al-Dhabyani et al., Data in Brief 28:104863, 2020).

The first place that has it is used: the data folder, the archive that `BUSI_ARCHIVE` names, the mirrors. busi.csv
lists the 1,578 published files with the hash of their decoded pixels, so that a copy that was compressed anew
passes and one with a single changed pixel fails by name.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from ultrasound.errors import InputError, ParameterError
from ultrasound.images import archive, catalog
from ultrasound.images.sources import Release
from ultrasound.sections import Data, Download

FOLDER = "Dataset_BUSI_with_GT"
CLASSES = {"benign", "malignant", "normal"}
MANIFEST = Path(__file__).with_suffix(".csv")
STAGING = ".incoming-"
DESCRIPTION = (
    "BUSI, Breast Ultrasound Images (Al-Dhabyani et al., Data in Brief 28:104863, 2020): 780 images of about 600 "
    "women, collected in 2018 at Baheya Hospital, Cairo, with GE scanners. No patient identifiers are published, so "
    "images of one woman may stand on both sides of the split; near-duplicates do not. For single images neither age, "
    "breast density, ethnicity nor scanner are published, nor how the label was confirmed; some labels contradict each "
    "other. Readers drew the masks."
)


def fetch(data: Data, download: Download, data_folder: Path, build_folder: Path) -> Release:
    """Return the verified release in `data_folder`, filling that folder first if it is empty.

    Raises:
        ParameterError: `data.classes` are not BUSI's.
        InputError: no place has the release, or a file of it is missing, unknown, damaged or changed.
    """
    if set(data.classes) != CLASSES:
        raise ParameterError(f"data.classes={list(data.classes)} is not possible: BUSI has {sorted(CLASSES)}")
    expected = dict(pd.read_csv(MANIFEST)[["path", "rgb_sha256"]].itertuples(index=False, name=None))
    home = data_folder / FOLDER
    if home.is_dir() and any(home.iterdir()):
        paths = (file.relative_to(home).as_posix() for file in home.rglob("*") if file.is_file())
        return Release(home, _verified(home, [path for path in paths if not archive.is_litter(path)], expected))
    with _staging(data_folder.absolute().parent) as staging:
        if given := os.environ.get("BUSI_ARCHIVE"):
            if not Path(given).is_file():
                raise InputError(f"BUSI_ARCHIVE={given}: no such file")
            files = _from_archive(Path(given), given, staging / FOLDER, expected)
        else:
            files = _from_mirrors(download, staging, expected, home)
        data_folder.mkdir(exist_ok=True)
        if home.exists():
            home.rmdir()
        shutil.move(staging / FOLDER, home)
    return Release(home, files)


def _from_mirrors(download: Download, staging: Path, expected: dict[str, str], home: Path) -> list[catalog.File]:
    tried = [f"{home}: not there", "BUSI_ARCHIVE: not set"]
    for url in download.mirrors:
        file = staging / "archive.zip"
        try:
            archive.download(url, file, download.timeout)
            return _from_archive(file, "the archive", staging / FOLDER, expected)
        except InputError as error:
            tried.append(f"{url.partition('#')[0]}: {error}")
            shutil.rmtree(staging / FOLDER, ignore_errors=True)
            file.unlink(missing_ok=True)
    lines = "\n  ".join(tried)
    raise InputError(
        f"the BUSI images could not be had. Tried, in this order:\n  {lines}\n"
        "Remedies: download Dataset_BUSI.zip elsewhere and set BUSI_ARCHIVE=/path/to/Dataset_BUSI.zip; or unpack it to "
        f"{home}; or `dvc pull` from a team's remote; or take synthetic images, data.source: phantom in params.yaml"
    )


def _from_archive(file: Path, name: str, folder: Path, expected: dict[str, str]) -> list[catalog.File]:
    try:
        zipped = zipfile.ZipFile(file)
    except Exception as error:  # BadZipFile, OSError, NotImplementedError, UnicodeDecodeError
        raise InputError(
            f"{name} is not a whole ZIP archive ({error}): {file.stat().st_size} bytes, SHA-256 "
            f"{archive.sha256(file)}; download it again"
        ) from None
    with zipped:
        members = archive.members(zipped, name)
        paths = _without_top_folder(list(members))
        _same_files(paths.values(), expected, name)
        archive.extract(zipped, ((members[member], folder / path) for member, path in paths.items()), name)
    return _verified(folder, list(paths.values()), expected, name)


def _without_top_folder(names: list[str]) -> dict[str, str]:
    # Mirrors differ in what they call the folder above the class folders.
    marker = "benign/benign (1).png"
    top = next((name.removesuffix(marker) for name in names if f"/{name}".endswith(f"/{marker}")), "")
    return {name: name.removeprefix(top) for name in names}


def _same_files(paths: Iterable[str], expected: dict[str, str], where: str) -> None:
    found = set(paths)
    for what, difference in (("lacks", set(expected) - found), ("holds unknown files:", found - set(expected))):
        if difference:
            names = ", ".join(sorted(difference)[:3])
            more = f" and {len(difference) - 3} more" if len(difference) > 3 else ""
            raise InputError(f"{where} is not BUSI's release, it {what} {names}{more}")


def _verified(folder: Path, paths: list[str], expected: dict[str, str], where: str = "") -> list[catalog.File]:
    where = where or str(folder)
    _same_files(paths, expected, where)
    try:
        files = {file.path: file for file in catalog.scan(folder, paths)}
    except InputError as error:
        raise InputError(str(error).replace(str(folder), where)) from None
    for path, pixels in expected.items():
        if files[path].pixels != pixels:
            raise InputError(
                f"{where}: {path} is not as published: its decoded pixels have SHA-256 {files[path].pixels}, expected "
                f"{pixels}; get the file anew"
            )
    return [files[path] for path in expected]  # in the manifest's order


@contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    for dead in parent.glob(f"{STAGING}*"):  # of a process that was killed; DVC's lock keeps live ones apart
        shutil.rmtree(dead)
    folder = Path(tempfile.mkdtemp(prefix=STAGING, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
