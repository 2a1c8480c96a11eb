"""The split, decided once: a locked test set and grouped, stratified folds of the rest, in one table."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from ultrasound.errors import InputError

TEST, DEVELOPMENT, EXCLUDED = "test", "development", "excluded"
COLUMNS = ["image_id", "label", "group", "split", "fold", "reason"]


def split(catalog: pd.DataFrame, groups: NDArray[np.int64], test_share: float, folds: int, seed: int) -> pd.DataFrame:
    """Assign every image to the test set, a development fold, or to the excluded ones.

    No group is divided. Groups whose images carry different labels are excluded: one of the labels must be wrong.

    Args:
        catalog: the table of images (`image_id`, `label`).
        groups: (n,) group of each image.
        test_share: share of each class's groups that becomes the test set.
        folds: number of development folds.

    Returns:
        `COLUMNS`, in the catalogue's order; `fold` is 0..folds-1 in development, else missing (dtype Int64).

    Raises:
        InputError: a class has too few groups for a test set and the folds.
    """
    table = pd.DataFrame({"image_id": catalog["image_id"], "label": catalog["label"], "group": groups})
    labels = table.groupby("group")["label"]
    is_clean = labels.nunique() == 1
    clean = labels.first()[is_clean]
    conflicts = labels.agg(lambda found: " and ".join(sorted(set(found))))[~is_clean]
    few = clean.value_counts().reindex(sorted(set(table["label"])), fill_value=0)
    kept = len(clean) - math.ceil(test_share * len(clean))
    left = few * kept / max(len(clean), 1)  # of each class; train_test_split rounds it down or up
    if (left < folds).any() or (few - np.ceil(left) < 1).any():
        raise InputError(
            f"too few independent images for {folds} folds and a test set of {test_share:.0%}: "
            + ", ".join(f"{label} has {number} groups" for label, number in few.items())
            + "; change split.folds or split.test_share, or take more images"
        )
    _, test = train_test_split(clean.index.to_numpy(), test_size=test_share, stratify=clean, random_state=seed)
    table["split"] = DEVELOPMENT
    table.loc[table["group"].isin(test), "split"] = TEST
    table.loc[table["group"].isin(conflicts.index), "split"] = EXCLUDED
    table["fold"] = pd.array([pd.NA] * len(table), dtype="Int64")
    development = table.index[table["split"] == DEVELOPMENT]
    kfold = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(
        kfold.split(development, table.loc[development, "label"], table.loc[development, "group"])
    ):
        table.loc[development[held_out], "fold"] = fold
    table["reason"] = (
        table["group"]
        .map({group: f"conflict: near-duplicates are labelled {names}" for group, names in conflicts.items()})
        .fillna("")
    )
    return table[COLUMNS]


def digest(splits: pd.DataFrame) -> str:
    """16 hex digits that name the split: which image is in the test set, which in which fold, which in none."""
    rows = splits.sort_values("image_id")[["image_id", "split", "fold"]]
    return hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()[:16]


def summary(splits: pd.DataFrame) -> pd.DataFrame:
    """Images by class (columns) and by test set, fold, excluded (rows)."""
    where = splits["split"].where(splits["fold"].isna(), "fold " + splits["fold"].astype("string"))
    return pd.crosstab(where, splits["label"], margins=True, margins_name="all").rename_axis(index=None, columns=None)


def read(file: Path) -> pd.DataFrame:
    """Read a table that the split stage wrote.

    Raises:
        InputError: it is not there yet.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing: run `dvc repro` first")
    return pd.read_csv(file, dtype={"label": "str", "fold": "Int64"}, keep_default_na=False, na_values={"fold": ""})
