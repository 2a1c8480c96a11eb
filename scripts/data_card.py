"""`make data-card`: write the numbers of docs/data-card.md (and of README.md) from build/ and from MLflow.

A document marks the place of its numbers: what stands between `<!-- numbers: NAME -->` and `<!-- end -->` is replaced;
`BLOCKS` are the names. With `--check` nothing is written: the exit code is 1 where a document differs.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from ultrasound import params
from ultrasound.commands import CATALOG, DUPLICATES, SPLITS
from ultrasound.errors import InputError
from ultrasound.images import catalog, counts, splitting
from ultrasound.images.annotations import flags as annotation_flags

DOCUMENTS = [Path("docs/data-card.md"), Path("README.md")]
BLOCK = re.compile(r"(<!-- numbers: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
RELEASE = Path("data.dvc")
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1", "macro_auc": "AUC, mean of classes"}


class Facts(NamedTuple):
    """The outputs of the stages: the catalogue joined with the split, the pairs, the flags, and what names them."""

    rows: pd.DataFrame
    pairs: pd.DataFrame
    flags: pd.DataFrame
    data_digest: str
    split_digest: str

    @property
    def classes(self) -> list[str]:
        """Class names in the catalogue's order."""
        return list(dict.fromkeys(self.rows["label"]))


def release(facts: Facts) -> str:
    """What data.dvc pins, and which data and split the other numbers are of."""
    pinned = yaml.safe_load(RELEASE.read_text())["outs"][0]
    return (
        f"`data.dvc` pins {pinned['nfiles']:,} files of {pinned['size']:,} bytes in all, DVC hash `{pinned['md5']}`. "
        f"All numbers below are of data digest `{facts.data_digest}` and split digest `{facts.split_digest}`."
    )


def classes(facts: Facts) -> str:
    """Images, masks, sizes and lesions by class."""
    sizes = counts.size_table(facts.rows)
    total = sizes["all"]["images"]

    def cells(name: str, row: dict[str, Any]) -> list[Any]:
        ranges = [f"{row[side]['min']} to {row[side]['max']}, {row[side]['median']}" for side in ("width", "height")]
        share = _percent(row["lesion_share"]) if row["lesion_share"] == row["lesion_share"] else "no lesion"
        return [
            name,
            f"{row['images']} ({_percent(row['images'] / total)})",
            row["masks"],
            row["several"],
            *ranges,
            share,
        ]

    head = ["class", "images", "masks", "images with several lesions", "width, median", "height, median",
            "median share of the image that is lesion"]  # fmt: skip
    return _table(head, [cells(name, row) for name, row in sizes.items()])


def flags(facts: Facts) -> str:
    """Flagged images by class and in the test set."""
    table = counts.flag_table(facts.flags, facts.rows)[[*facts.classes, splitting.TEST, "all"]]
    rows = [[str(name).replace("_", " "), *row.values()] for name, row in table.to_dict("index").items()]
    return _table(["flag", *facts.classes, "test set", "all"], rows)


def duplicates(facts: Facts) -> str:
    """Pairs by the method that found them, and groups by size."""
    pairs, sizes = facts.pairs, facts.rows["group"].value_counts()
    methods = ", ".join(f"{number} {method}" for method, number in pairs["method"].value_counts().items()) or "none"
    several = sizes[sizes > 1]
    rows = [[size, int((sizes == size).sum())] for size in sorted(set(sizes))]
    return (
        f"{len(pairs)} pairs ({methods}), {int(pairs['mirrored'].sum())} of them mirrored, join {several.sum()} images "
        f"to {len(several)} groups, the largest of {sizes.max()}. The {len(facts.rows)} images are {len(sizes)} "
        "independent groups. Pairs confirmed but not joined, as a chain of views would have made too large a group: "
        f"{int((~pairs['joined']).sum())}.\n\n{_table(['images in a group', 'groups'], rows)}"
    )


def conflicts(facts: Facts) -> str:
    """Every group whose labels contradict each other, by the ids of its images."""
    groups = [group for group in counts.groups_of(facts.rows, facts.pairs) if group.is_conflict]
    images = sum(len(group.members) for group in groups)
    if not groups:
        return "No group of near-duplicates carries different labels."
    number = f"{len(groups)} group{'s' * (len(groups) != 1)}, {images} images:"
    lines = [f"- {' = '.join(f'`{member}`' for member in group.members)} ({group.place})" for group in groups]
    return "\n".join([number, "", *lines])


def split(facts: Facts) -> str:
    """Images by part and class, with shares and the largest deviation."""
    parts, deviation = counts.part_table(facts.rows), counts.share_table(facts.rows)["deviation"].to_dict()
    rows = []
    for part, row in parts.to_dict("index").items():
        by_class = [f"{row[label]} ({_percent(row[label] / row['all'])})" for label in facts.classes]
        points = f"{100 * deviation[part]:.1f}" if part in deviation else ""
        rows.append([part, *by_class, row["all"], row["groups"], points])
    return _table(["part", *facts.classes, "images", "groups", "deviation, points"], rows) + (
        f"\n\nThe largest deviation of a class share is {100 * max(deviation.values()):.1f} percentage points; "
        f"groups that stand in more than one part: {counts.divided(facts.rows)}."
    )


def leakage(facts: Facts) -> str:
    """What random folds pretend: the latest finished run of `leakage` with today's data, split and parameters.

    Raises:
        InputError: there is none, or its report cannot be read.
    """
    import mlflow  # seconds, which the other blocks need not wait for

    values = params.load()
    trained = ("model", "augment", "train") if values.leakage.recipe == "finetune" else ()
    used = params.flatten(values, ("preprocess", "leakage", *trained))
    tags = {"verb": "leakage", "data_digest": facts.data_digest, "split_digest": facts.split_digest}
    conditions = [f"tags.{name} = '{value}'" for name, value in tags.items()] + ["attributes.status = 'FINISHED'"]
    conditions += [f"params.`{name}` = '{value}'" for name, value in used.items()]
    runs = mlflow.search_runs(
        filter_string=" AND ".join(conditions), order_by=["attributes.start_time DESC"], max_results=1,
        search_all_experiments=True, output_format="list",
    )  # fmt: skip
    if not runs:
        raise InputError(
            f"no finished run of leakage on data {facts.data_digest}, split {facts.split_digest} and the parameters of "
            f"{params.FILE} in {mlflow.get_tracking_uri()}: run `mlflow run . -e leakage --env-manager local` first"
        )
    try:
        report = mlflow.artifacts.load_dict(f"{runs[0].info.artifact_uri}/leakage.json")
    except mlflow.MlflowException as error:
        raise InputError(
            f"leakage.json of run {runs[0].info.run_id} cannot be read ({error}): run leakage anew"
        ) from None

    def cell(folds: str, metric: str) -> str:
        score = report["scores"][folds][metric]
        return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"

    rows = [[name, *(cell(folds, metric) for folds in ("random", "grouped", "difference"))]
            for metric, name in METRICS.items()]  # fmt: skip
    settings = ", ".join(f"`{name}={value}`" for name, value in used.items())
    return _table(["", "random folds", "grouped folds", "difference"], rows) + (
        f"\n\nMeans over {len(report['seeds'])} repetitions with other folds, {report['folds']} folds each, of the "
        f"{report['images']} development images in {report['groups']} groups; in brackets, 95 % intervals of a "
        f"bootstrap by group. Parameters: {settings}. The labels of {report['suspect_labels']} images are contradicted "
        "by the predictions of the grouped folds; none was changed."
    )


BLOCKS = {block.__name__: block for block in (release, classes, flags, duplicates, conflicts, split, leakage)}


def renew(document: Path, facts: Callable[[], Facts]) -> tuple[str, str]:
    """Return the text of a document as it is, and with the content of every block replaced.

    Raises:
        InputError: the document is missing, a block is unknown or has no end, or its numbers cannot be had.
    """
    if not document.is_file():
        raise InputError(f"{document} is missing: run this from the project's top folder")
    text = document.read_text(encoding="utf-8")
    found = BLOCK.findall(text)
    if text.count("<!-- numbers:") != len(found):
        raise InputError(f"{document} holds a `<!-- numbers: NAME -->` without its `<!-- end -->`")
    if unknown := [name for _, name, _, _ in found if name not in BLOCKS]:
        raise InputError(f"{document} asks for the unknown numbers {unknown[0]!r}: there are {', '.join(BLOCKS)}")
    return text, BLOCK.sub(lambda match: f"{match[1]}\n{BLOCKS[match[2]](facts())}\n\n{match[4]}", text)


def main() -> None:
    """Renew or check the documents of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", nargs="*", type=Path, default=DOCUMENTS, help="Markdown files to renew")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; show what differs, exit 1 if anything does"
    )
    arguments = parser.parse_args()
    try:
        sys.exit(run(arguments.documents, arguments.check))
    except InputError as error:
        sys.exit(f"error: {error}")


def run(documents: list[Path], check: bool) -> int:
    """Renew the documents, or with `check` print how they differ; returns the exit code."""
    facts = functools.cache(read)
    texts = {document: renew(document, facts) for document in documents}  # all, before any is written
    different = {document: (old, new) for document, (old, new) in texts.items() if old != new}
    for document, (old, new) in different.items():
        if check:
            lines, renewed = old.splitlines(keepends=True), new.splitlines(keepends=True)
            sys.stdout.writelines(difflib.unified_diff(lines, renewed, f"{document}, as it is", "as it should be"))
        else:
            document.write_text(new, encoding="utf-8")
            print(f"{document}: renewed")
    if not different:
        print("nothing to renew")
    elif check:
        print("error: the numbers above are not those of build/: run `make data-card`", file=sys.stderr)
    return int(check and bool(different))


def read() -> Facts:
    """Read the outputs of the stages.

    Raises:
        InputError: one is missing, or they are of different images.
    """
    table, splits = catalog.read(CATALOG), splitting.read(SPLITS)
    rows = counts.join(table, splits)
    flagged = annotation_flags(table).set_axis(rows.index)
    return Facts(rows, counts.read_pairs(DUPLICATES), flagged, catalog.digest(table), splitting.digest(splits))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


if __name__ == "__main__":
    main()
