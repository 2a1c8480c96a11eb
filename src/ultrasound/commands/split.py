"""Group near-duplicate images, lock the test set away, and assign the folds: build/splits.csv.

Run by `dvc repro`, or alone: `python -m ultrasound split`. Nothing after this stage splits again. Beside the split it
writes duplicates.csv (every pair with its evidence), test_set.csv (the list of test images to keep, `split.test_set`)
and splits_final.json (the folds for nnU-Net).
"""

import json
from pathlib import Path

from ultrasound.commands import CATALOG, DUPLICATES, NNUNET, SPLITS, TEST_SET
from ultrasound.images import catalog, duplicates, splitting
from ultrasound.sections import Params

SECTIONS = ("split",)


def run(params: Params) -> None:
    """Read catalogue and kept test set, write the split and what it rests on, print a summary."""
    settings = params.split
    table, kept = catalog.read(CATALOG), splitting.read_test_set(Path(settings.test_set))
    pairs = duplicates.near_duplicates(table, settings.inliers, settings.correlation)
    groups = duplicates.groups(table["image_id"].tolist(), pairs)
    splits = splitting.split(
        table, groups, set(kept["pixels"]), settings.test_share, settings.folds, settings.conflicts, settings.seed
    )
    test_set, cases = splitting.test_set(splits, table, kept), splitting.nnunet(splits)
    pairs.to_csv(DUPLICATES, index=False)
    splits.to_csv(SPLITS, index=False)
    test_set.to_csv(TEST_SET, index=False)
    NNUNET.write_text(json.dumps(cases, indent=1) + "\n")
    sizes = splits["group"].value_counts()
    methods = ", ".join(f"{count} {method}" for method, count in pairs["method"].value_counts().items())
    print(f"{len(pairs)} pairs of near-duplicates ({methods or 'none'}); {len(sizes)} groups, {(sizes > 1).sum()} of "
          f"several images, the largest of {sizes.max()}")  # fmt: skip
    if apart := (~pairs["joined"]).sum():
        print(f"{apart} pairs of the same view were not joined, so the split may divide them: a chain of views would "
              "have made too large a group")  # fmt: skip
    for reason in splits.loc[splits["status"] == splitting.CONFLICT, "reason"].unique():
        print(f"conflict ({settings.conflicts}): {reason}")
    print(splitting.summary(splits).to_string())
    print(f"split digest {splitting.digest(splits)}")
    test = table.loc[splits["split"] == splitting.TEST, "pixels"]
    if lost := table.loc[splits["split"] == splitting.EXCLUDED, "pixels"].isin(set(kept["pixels"])).sum():
        print(f"{lost} images of the kept test set are excluded: near-duplicates contradict their labels")
    if unlocked := (~test.isin(set(kept["pixels"]))).sum():
        print(f"{unlocked} test images are not in {settings.test_set}: `cp {TEST_SET} {settings.test_set}` and commit "
              "it, so that images added later move none of them")  # fmt: skip
