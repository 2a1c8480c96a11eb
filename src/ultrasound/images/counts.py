"""What can be counted: classes, sizes, flags, parts of the split, groups of near-duplicates.

The data report and the data card show these tables; neither counts for itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ultrasound.errors import InputError
from ultrasound.images import catalog, splitting
from ultrasound.images.duplicates import COLUMNS as PAIR_COLUMNS


class Group(NamedTuple):
    """Images that show the same scan or lesion.

    Attributes:
        number: as in build/splits.csv.
        members: image ids.
        place: where they stand: test, fold 0, excluded.
        links: the joined pairs that hold the group together, strongest correlation first; missing values are None.
        reasons: why it is a conflict, each once.
        is_conflict: whether its labels contradict each other.
    """

    number: int
    members: list[str]
    place: str
    links: list[dict[str, Any]]
    reasons: list[str]
    is_conflict: bool

    @property
    def possible(self) -> int:
        """How many pairs there would be if every image were linked with every other."""
        return len(self.members) * (len(self.members) - 1) // 2


def read_pairs(file: Path) -> pd.DataFrame:
    """Read the table of near-duplicates that the split stage wrote.

    Raises:
        InputError: it is not there yet, or is another table.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing: run `dvc repro` first")
    pairs = pd.read_csv(file)
    if missing := [name for name in PAIR_COLUMNS if name not in pairs]:
        raise InputError(f"{file} lacks the column {missing[0]}: run `dvc repro --force split`")
    return pairs


def join(table: pd.DataFrame, splits: pd.DataFrame) -> pd.DataFrame:
    """One row an image, `image_id` as index too: the columns of catalogue and split, and the `place` in words.

    Raises:
        InputError: the tables list different images.
    """
    if table["image_id"].tolist() != splits["image_id"].tolist():
        raise InputError("the catalogue and the split list different images: run `dvc repro`")
    rows = table.join(splits.drop(columns=["image_id", "label"])).set_index("image_id", drop=False).rename_axis(None)
    fold = "fold " + rows["fold"].astype("string")
    return rows.assign(place=rows["split"].where(rows["fold"].isna(), fold).astype(str))


def groups_of(rows: pd.DataFrame, pairs: pd.DataFrame) -> list[Group]:
    """Groups of several images, the largest first.

    Args:
        rows: as `join` returns them.
        pairs: `PAIR_COLUMNS`.

    Raises:
        InputError: a pair joins images that are unknown or stand in different groups.
    """
    links: dict[int, list[dict[str, Any]]] = {}
    for pair in records(pairs.sort_values(["correlation", "first", "second"], ascending=[False, True, True])):
        first, second = (rows["group"].get(pair[end]) for end in ("first", "second"))
        if first is not None and second is not None and not pair["joined"]:
            continue
        if first is None or first != second:
            raise InputError(
                f"the pair {pair['first']} and {pair['second']} is not in one group of the split: run `dvc repro`"
            )
        links.setdefault(int(first), []).append(pair)
    groups = [
        Group(
            int(members["group"].iloc[0]), members.index.tolist(), ", ".join(dict.fromkeys(members["place"])),
            links.get(members["group"].iloc[0], []),
            [reason for reason in dict.fromkeys(members["reason"]) if reason],
            bool((members["status"] == splitting.CONFLICT).any()),
        )
        for _, members in rows.groupby("group") if len(members) > 1
    ]  # fmt: skip
    return sorted(groups, key=lambda group: (-len(group.members), group.number))


def divided(rows: pd.DataFrame) -> int:
    """How many groups stand in more than one part of the split; the split stage promises none."""
    return int((rows.groupby("group")["place"].nunique() > 1).sum())


def size_table(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """By class, and for `all`: what the images are like.

    Returns:
        class -> images, masks, several (images with more than one lesion), width and height (pixels: min, median,
        max), lesion_share (median share of the image that is lesion, of the images with a lesion; NaN if none has one).
    """
    masks = rows["masks"].map(lambda files: sum(map(bool, files.split(catalog.SEPARATOR))))
    facts = rows.assign(masks=masks, lesion_share=rows["lesion_share"].where(rows["lesions"] > 0))

    def describe(part: pd.DataFrame) -> dict[str, Any]:
        return {
            "images": len(part),
            "masks": int(part["masks"].sum()),
            "several": int((part["lesions"] > 1).sum()),
            "width": part["width"].agg(["min", "median", "max"]).astype(int).to_dict(),
            "height": part["height"].agg(["min", "median", "max"]).astype(int).to_dict(),
            "lesion_share": part["lesion_share"].median(),
        }

    return {str(label): describe(part) for label, part in facts.groupby("label", sort=False)} | {"all": describe(facts)}


def part_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Images by class, `all` and independent `groups` (columns) of every fold, the test set, the excluded, and all."""
    counts = pd.crosstab(rows["place"], rows["label"], margins=True, margins_name="all")
    counts = counts.loc[[*_parts(rows), "all"], [*dict.fromkeys(rows["label"]), "all"]]
    groups = rows.groupby("place")["group"].nunique()
    groups["all"] = rows["group"].nunique()
    return counts.assign(groups=groups).rename_axis(index=None, columns=None)


def share_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Each class's share of a part (0..1), and `deviation`: the largest difference from its share of all kept images.

    Rows are the folds, the test set, and `kept`: all but the excluded ones.
    """
    kept = rows[rows["split"] != splitting.EXCLUDED]
    shares = pd.crosstab(kept["place"], kept["label"], margins=True, margins_name="kept", normalize="index")
    shares = shares.loc[[*_parts(kept), "kept"], list(dict.fromkeys(kept["label"]))]
    deviation = (shares - shares.loc["kept"]).abs().max(axis=1)
    return shares.assign(deviation=deviation).rename_axis(index=None, columns=None)


def flag_table(flags: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Flagged images by flag (rows), and by class, by part and in all (columns)."""
    by_class = flags.groupby(rows["label"], sort=False).sum().T
    by_part = flags.groupby(rows["place"]).sum().T[_parts(rows)]
    return by_class.join(by_part).assign(all=flags.sum()).rename_axis(index=None, columns=None).astype(int)


def _parts(rows: pd.DataFrame) -> list[str]:
    """Folds in order of their number, then the test set, then the excluded."""
    order = {splitting.TEST: 1, splitting.EXCLUDED: 2}
    known = rows.sort_values("fold").drop_duplicates("place")["place"]
    return sorted(known, key=lambda place: order.get(place, 0))


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as dictionaries; missing values are None."""
    rows = table.astype(object).where(table.notna(), None)
    return [dict(zip(rows.columns, row, strict=True)) for row in rows.itertuples(index=False, name=None)]
