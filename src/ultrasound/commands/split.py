"""Group near-duplicate images, lock the test set away, and assign the folds: build/splits.csv.

Run by `dvc repro`, or alone: `python -m ultrasound split`. Nothing after this stage splits again.
"""

from ultrasound.commands import CATALOG, SPLITS
from ultrasound.images import catalog, duplicates, splitting
from ultrasound.params import Params

SECTIONS = ("split",)


def run(params: Params) -> None:
    """Read the catalogue, write the split, print both tables."""
    table = catalog.read(CATALOG)
    pairs = duplicates.near_duplicates(table["image"].tolist(), params.split.hash_distance, params.split.correlation)
    groups = duplicates.groups(len(table), pairs)
    splits = splitting.split(table, groups, params.split.test_share, params.split.folds, params.split.seed)
    splits.to_csv(SPLITS, index=False)
    sizes = splits["group"].value_counts()
    print(f"{len(pairs)} pairs of near-duplicates; {len(sizes)} groups, {(sizes > 1).sum()} of several images, "
          f"the largest of {sizes.max()}")  # fmt: skip
    print(splitting.summary(splits).to_string())
    print(f"split digest {splitting.digest(splits)}")
