"""Fetch the images, verify every file, look for annotations, and write the table of images, build/catalog.csv.

Run by `dvc repro`, or alone: `python -m ultrasound download`. BUSI comes from data/ if it is there, else from the
archive that BUSI_ARCHIVE names, else from the mirrors.
"""

from ultrasound.commands import BUILD, CATALOG, DATA, VERIFIED
from ultrasound.images import annotations, catalog, sources, verified
from ultrasound.sections import Params

SECTIONS = ("data", "download")


def run(params: Params) -> None:
    """Fetch, verify, write; print what is there."""
    release = sources.fetch(params.data, params.download, DATA, BUILD)
    table = annotations.annotate(catalog.table(release.folder.as_posix(), release.files))
    BUILD.mkdir(exist_ok=True)
    table.to_csv(CATALOG, index=False)
    verified.note({f"{release.folder.as_posix()}/{file.path}": file.pixels for file in release.files}, VERIFIED)
    counts = table["label"].value_counts()
    classes = ", ".join(f"{counts[label]} {label}" for label in params.data.classes)
    print(f"{params.data.source}: {len(release.files)} files verified, {len(table)} images ({classes})")
    print(f"data digest {catalog.digest(table)}")
