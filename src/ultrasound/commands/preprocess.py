"""Decode, crop, grey and resize all images once: build/prepared/ with images.npy, masks.npy, samples.csv and more.

Run by `dvc repro`, or alone: `python -m ultrasound preprocess`. Training reads these arrays and nothing else.
"""

from ultrasound.commands import CATALOG, PREPARED, SPLITS, VERIFIED
from ultrasound.images import catalog, prepared, splitting, verified
from ultrasound.images.preparation import Preparation
from ultrasound.sections import Params

SECTIONS = ("preprocess",)


def run(params: Params) -> None:
    """Read catalogue and split, write the prepared arrays."""
    table, splits = catalog.read(CATALOG), splitting.read(SPLITS)
    preparation = Preparation(**params.preprocess.model_dump())
    made = prepared.write(table, splits, preparation, PREPARED, verified.untouched(VERIFIED))
    size = made.preparation.size
    print(f"{len(made.samples)} images of {size}x{size} pixels in {PREPARED}/; data {made.data_digest}, "
          f"split {made.split_digest}")  # fmt: skip
