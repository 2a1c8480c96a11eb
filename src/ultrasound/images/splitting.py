"""The split, decided once: a locked test set and grouped, stratified folds of the rest, in one table."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from ultrasound.errors import InputError

TEST, DEVELOPMENT, EXCLUDED = "test", "development", "excluded"
CLEAN, CONFLICT = "clean", "conflict"
COLUMNS = ["image_id", "label", "group", "split", "fold", "status", "reason"]
TEST_SET_COLUMNS = ["image_id", "label", "pixels"]
_STARTS = 16  # systematic samples of a class to choose from
_NAMED = 6  # images that the reason of a conflict names


def split(
    catalog: pd.DataFrame,
    groups: NDArray[np.int64],
    kept: Collection[str],
    test_share: float,
    folds: int,
    conflicts: Literal["exclude", "keep"],
    seed: int,
) -> pd.DataFrame:
    """Assign every image to the test set, a development fold, or to the excluded ones. No group is divided.

    A group that holds a kept image is a test group. Each class's test set is filled up to its share of groups by
    systematic sampling (Madow and Madow 1944, Ann. Math. Stat. 15:1) over its groups in order of size, so that classes
    and sizes of groups are represented alike; groups of equal size stand in a seeded order. Of 16 such samples the one
    counts whose number of images is nearest the share. Neither names nor the order of rows matter, only pixels do.

    Args:
        catalog: the table of images (`image_id`, `label`, `pixels`).
        groups: (n,) group of each image.
        kept: pixel hashes of the images that are test images already, see `read_test_set`.
        test_share: share of the groups that becomes the test set; each class's share is rounded down or up.
        folds: number of development folds.
        conflicts: whether groups whose images carry different labels are excluded (one of the labels must be wrong,
            so even kept images among them leave the test set), or take part under their most frequent label.

    Returns:
        `COLUMNS`, in the catalogue's order; `fold` is 0..folds-1 in development, else missing (dtype Int64); `status`
        is clean or conflict, and `reason` names the images and labels that disagree.

    Raises:
        InputError: a class has too few groups for a test set and the folds.
    """
    table = pd.DataFrame({name: catalog[name].to_numpy() for name in TEST_SET_COLUMNS}).assign(group=groups)
    known = _groups(table, kept)
    used = known if conflicts == "keep" else known[~known["conflict"]]
    test = _test_groups(used, test_share, seed)
    labels = sorted(set(table["label"]))
    numbers, tested = (rows["label"].value_counts().reindex(labels, fill_value=0) for rows in (used, used.loc[test]))
    if (tested < 1).any() or (numbers - tested < folds).any():
        raise InputError(
            f"too few independent images for {folds} folds and a test set of {test_share:.0%}: "
            + ", ".join(
                f"{label} has {numbers[label]} groups, {tested[label]} of them for the test" for label in labels
            )
            + "; change split.folds or split.test_share, or take more images"
        )
    table["split"] = EXCLUDED
    table.loc[table["group"].isin(used.index), "split"] = DEVELOPMENT
    table.loc[table["group"].isin(test), "split"] = TEST
    table["fold"] = _development_folds(table, folds, seed)
    mixed = table["group"].isin(known.index[known["conflict"]])
    table["status"] = np.where(mixed, CONFLICT, CLEAN)
    reasons = {group: _reason(rows) for group, rows in table[mixed].groupby("group")}
    table["reason"] = table["group"].map(reasons).fillna("").astype(str)
    return table[COLUMNS]


def folds(
    labels: Sequence[str], groups: Sequence[int] | NDArray[np.int64] | None, count: int, seed: int
) -> NDArray[np.int64]:
    """Number the fold of each image: (n,), 0..count-1; stratified by label, and no group is divided.

    With `groups=None` the folds are random (stratified only): near-duplicates stand on both sides. That is for
    measuring what such folds pretend, never for choosing a model.

    Raises:
        InputError: there are too few groups (or images) of a label for every fold to hold one.
    """
    table = pd.DataFrame({"label": np.asarray(labels, dtype=str), "group": range(len(labels))})
    table["group"] = table["group"] if groups is None else groups
    numbers = table.groupby("label")["group"].nunique()
    fold = np.zeros(len(table), dtype=np.int64)
    if numbers.min() >= count:
        kind = StratifiedKFold if groups is None else StratifiedGroupKFold
        kfold = kind(count, shuffle=True, random_state=seed)
        sets = kfold.split(table, table["label"], None if groups is None else table["group"])
        for number, (_, held_out) in enumerate(sets):
            fold[held_out] = number
    if pd.Series(fold).groupby(table["label"]).nunique().min() < count:
        found = ", ".join(f"{label} has {number} groups" for label, number in numbers.items())
        raise InputError(
            f"too few independent images for {count} folds with every class in each: {found}; "
            "change split.folds, or take more images"
        )
    return fold


def test_set(splits: pd.DataFrame, catalog: pd.DataFrame, kept: pd.DataFrame) -> pd.DataFrame:
    """The list to keep as `split.test_set` from now on, sorted by id: today's test images, and what is kept already.

    A kept image that is not among today's, because a newcomer contradicts its label or because it is not in this data
    set, stays in the list: it must not become a development image later.

    Args:
        kept: as `read_test_set` returns it.

    Returns:
        `TEST_SET_COLUMNS`.
    """
    today = catalog.loc[catalog["image_id"].isin(splits.loc[splits["split"] == TEST, "image_id"]), TEST_SET_COLUMNS]
    rest = kept[~kept["pixels"].isin(set(today["pixels"]))]
    return pd.concat([today, rest]).sort_values(["image_id", "pixels"], ignore_index=True)


def read_test_set(file: Path) -> pd.DataFrame:
    """Read the list of images that stay test images, `TEST_SET_COLUMNS`; none in a file that holds only its header.

    Raises:
        InputError: the file is missing, is no such table, or holds something else than pixel hashes.
    """
    remedy = f"restore it, or start a new test set with a file of the one line {','.join(TEST_SET_COLUMNS)}"
    if not file.is_file():
        raise InputError(f"{file} (split.test_set) is missing: {remedy}")
    try:
        kept = pd.read_csv(file, dtype=str, keep_default_na=False, usecols=TEST_SET_COLUMNS)[TEST_SET_COLUMNS]
    except ValueError:  # pandas raises it, or a kind of it, for a missing column, bad CSV, and bad UTF-8
        columns = ", ".join(TEST_SET_COLUMNS)
        raise InputError(f"{file} (split.test_set) is no CSV table with the columns {columns}: {remedy}") from None
    if not (is_hash := kept["pixels"].str.fullmatch("[0-9a-f]{64}")).all():
        raise InputError(f"{file} (split.test_set) holds {kept['pixels'][~is_hash].iloc[0]!r} in column pixels, which "
                         f"is no SHA-256 of pixels: {remedy}")  # fmt: skip
    return kept


def nnunet(splits: pd.DataFrame) -> list[dict[str, list[str]]]:
    """Give the development folds as nnU-Net's splits_final.json: per fold the cases that train and that validate.

    A case is named after its image: what is no letter, digit or underscore becomes an underscore, and the folder is
    left out where the file's name starts with it (`benign/benign (1)` -> `benign_1`). Where names would be equal, the
    later ones by id end in `_again`. Image files of nnU-Net are then called `benign_1_0000.png`, label files
    `benign_1.png`.

    Source: documentation/manual_data_splits.md of https://github.com/MIC-DKFZ/nnUNet (Isensee et al. 2021, Nature
    Methods 18:203).
    """
    names = splits["image_id"].str.replace(r"^(.+)/(?=\1)", "", regex=True)
    table = splits.assign(case=names.str.replace(r"\W+", "_", regex=True).str.strip("_")).sort_values("image_id")
    while (again := table["case"].str.casefold().duplicated()).any():  # files of some systems do not tell case
        table.loc[again, "case"] += "_again"
    development = table[table["split"] == DEVELOPMENT].sort_values("case")
    return [
        {"train": development.loc[development["fold"] != fold, "case"].tolist(), "val": rows["case"].tolist()}
        for fold, rows in development.groupby("fold")
    ]


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


def _groups(table: pd.DataFrame, kept: Collection[str]) -> pd.DataFrame:
    """One row a group: its most frequent label (of several, the first by name), images, first pixel hash, states."""
    counts = table.groupby(["group", "label"]).size().rename("size").reset_index()
    majority = counts.sort_values(["size", "label"], ascending=[False, True]).drop_duplicates("group")
    by_group = table.assign(kept=table["pixels"].isin(set(kept))).groupby("group")
    return pd.DataFrame(
        {
            "label": majority.set_index("group")["label"],
            "size": by_group.size(),
            "first": by_group["pixels"].min(),
            "conflict": by_group["label"].nunique() > 1,
            "kept": by_group["kept"].any(),
        }
    )


def _test_groups(known: pd.DataFrame, share: float, seed: int) -> list[int]:
    """Fill the kept groups of each class up to its share, as `split` says."""
    order = [hashlib.sha256(f"{seed} {pixels}".encode()).hexdigest() for pixels in known["first"]]
    known = known.assign(order=order).sort_values(["size", "order"])
    test = known.index[known["kept"]].tolist()
    random = np.random.default_rng(seed)
    for label, quota in _quotas(known["label"].value_counts().sort_index(), share).items():
        rows = known[known["label"] == label]
        locked, free = rows[rows["kept"]], rows[~rows["kept"]]
        if (count := quota - len(locked)) > 0:
            starts = random.random((_STARTS, 1))
            samples = ((starts + np.arange(count)) * (len(free) / count)).astype(np.int64)
            lacking = share * rows["size"].sum() - locked["size"].sum()
            images = free["size"].to_numpy()[samples].sum(axis=1)
            test += free.index[samples[np.abs(images - lacking).argmin()]].tolist()
    return test


def _quotas(numbers: pd.Series, share: float) -> dict[str, int]:
    """Test groups of each class: `share` of all, rounded up; where it has to be rounded, the largest remainders up."""
    wanted = numbers * share
    quotas = np.floor(wanted).astype(int)
    rest = math.ceil(wanted.sum() - 1e-9) - quotas.sum()  # 0.2 * 9 + 0.2 * 41 is 10.000000000000002
    quotas[(wanted - quotas).sort_values(ascending=False, kind="stable").index[:rest]] += 1
    return {str(label): int(quota) for label, quota in quotas.items()}


def _development_folds(table: pd.DataFrame, count: int, seed: int) -> pd.Series:
    """Fold of each development image, by position; in the order of pixels, so that the order of rows is no matter."""
    development = table[table["split"] == DEVELOPMENT].sort_values("pixels")
    numbers = folds(development["label"].tolist(), pd.factorize(development["group"])[0], count, seed)
    return pd.Series(numbers, development.index, dtype="Int64").reindex(table.index)


def _reason(group: pd.DataFrame) -> str:
    labels = sorted(set(group["label"]))
    names = group.sort_values("image_id")
    named = names.iloc[names.groupby("label").cumcount().argsort(kind="stable")]["image_id"][
        :_NAMED
    ]  # all labels first
    more = f" and {len(group) - _NAMED} more" if len(group) > _NAMED else ""
    return f"near-duplicates are labelled {' and '.join(labels)}: {', '.join(sorted(named))}{more}"
