"""`make bench-duplicates`: recall of the near-duplicate search, and its cost by number of images.

copies   Draws phantoms, changes each in every way that copies of a scan differ in, runs the search of the split stage
         on all of them, and prints recall and precision by kind of copy. All true pairs are known, none by chance.
audit    Times search and split on more and more phantoms (or on the images of a catalogue), by stage.

Thresholds and seed of the split are those of params.yaml. The same arguments give the same pictures and pairs.
"""

from __future__ import annotations

import argparse
import io
import itertools
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from ultrasound import params
from ultrasound.errors import InputError
from ultrasound.images import catalog, duplicates, keypoints, splitting
from ultrasound.images.preparation import pixel_hash
from ultrasound.images.sources import phantom

ORIGINAL = "original"
MARK = 235  # grey value of what is drawn


def crop(scan: Image.Image, random: Generator) -> Image.Image:
    """Keep a window without 5-20 % of the width and 5-20 % of the height, anywhere."""
    width, height = (round(side * (1 - random.uniform(0.05, 0.2))) for side in scan.size)
    left, top = int(random.integers(scan.width - width + 1)), int(random.integers(scan.height - height + 1))
    return scan.crop((left, top, left + width, top + height))


def rescale(scan: Image.Image, random: Generator) -> Image.Image:
    """Change both sides by one factor of 0.7-1.3."""
    factor = random.uniform(0.7, 1.3)
    return scan.resize((round(factor * scan.width), round(factor * scan.height)), Image.Resampling.BICUBIC)


def mirror(scan: Image.Image, random: Generator) -> Image.Image:
    """Turn left to right."""
    return scan.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def contrast(scan: Image.Image, random: Generator) -> Image.Image:
    """Change gamma, contrast and gain, each by a factor of 0.7-1.4."""
    gamma, factor, gain = np.exp(random.uniform(np.log(0.7), np.log(1.4), 3))
    grey = (np.asarray(scan) / 255) ** gamma
    return Image.fromarray(np.uint8(255 * np.clip(gain * (grey.mean() + factor * (grey - grey.mean())), 0, 1)))


def calipers(scan: Image.Image, random: Generator) -> Image.Image:
    """Draw two measurements: numbered crosses joined by dotted lines, and the lengths in words."""
    drawn = scan.copy()
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(13)
    middle = random.uniform(0.35, 0.65, 2) * scan.size
    for number, direction in enumerate(((1, random.uniform(-0.4, 0.4)), (random.uniform(-0.4, 0.4), 1)), start=1):
        reach = random.uniform(0.12, 0.25) * np.array(direction) * scan.size
        for x, y in np.linspace(middle - reach, middle + reach, int(np.hypot(*reach) / 4)):
            pen.point((x, y), MARK)
        for x, y in (middle - reach, middle + reach):
            pen.line((x - 7, y, x + 7, y), MARK)
            pen.line((x, y - 7, x, y + 7), MARK)
            pen.text((x + 9, y - 5), str(number), MARK, font)
        length = 2 * np.hypot(*reach) / 100
        pen.text((10, scan.height - 18 * number), f"{number} L {length:.2f} cm", MARK, font)
    return drawn


def compress(scan: Image.Image, random: Generator) -> Image.Image:
    """Save as JPEG of quality 60."""
    file = io.BytesIO()
    scan.save(file, "JPEG", quality=60)
    return Image.open(file)


def lettering(scan: Image.Image, random: Generator) -> Image.Image:
    """Burn in what is the same on every scan, at the same place: a side, a quadrant, a ruler, the device's mark."""
    drawn = scan.copy()
    pen = ImageDraw.Draw(drawn)
    pen.text((60, 40), "LEFT BREAST", MARK, ImageFont.load_default(18))
    pen.text((150, 280), "RT UOQ", MARK, ImageFont.load_default(18))
    pen.text((8, 6), "US 7.5 MHz  G 62 %", MARK, ImageFont.load_default(12))
    for tick in range(10, 310, 15):
        pen.line((370 - (10 if tick % 75 == 10 else 5), tick, 370, tick), MARK)
    return drawn


def all_at_once(scan: Image.Image, random: Generator) -> Image.Image:
    """Calipers, then a crop of another size and contrast, as JPEG."""
    for change in (calipers, crop, rescale, contrast, compress):
        scan = change(scan, random)
    return scan


KINDS: dict[str, Callable[[Image.Image, Generator], Image.Image]] = {
    "crop": crop,
    "rescale": rescale,
    "mirror": mirror,
    "contrast": contrast,
    "calipers": calipers,
    "JPEG": compress,
    "lettering": lettering,
    "all at once": all_at_once,
}


def draw(folder: Path, scans: int, seed: int, kinds: Collection[str] = tuple(KINDS)) -> pd.DataFrame:
    """Write `scans` independent phantoms and a copy of each kind of each to `folder`.

    Returns:
        What `near_duplicates` takes (`image_id`, `image`, `pixels`), and of each image its `scan` and `kind`.
    """
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        drawn = pool.map(_draw_one, range(scans), *map(itertools.repeat, (folder, seed, kinds)))
        return pd.DataFrame(itertools.chain(*drawn), columns=["image_id", "image", "pixels", "scan", "kind"])


def score(images: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Count, for each kind of copy and for all, which pairs of an original and its copy were found.

    Args:
        images: as `draw` returns them.
        pairs: as `near_duplicates` returns them.

    Returns:
        Indexed by kind: `pairs` (original and copy), `found` of these, `recall` (%), `false pairs` (found, but of
        different scans, with a copy of the kind among them), `precision` (%, of all found pairs with a copy of the
        kind among them). The last row, `all`, counts every found pair, those of two originals or two copies too.
    """
    known = images.set_index("image_id")
    one, other = (known.loc[pairs[end]].reset_index(drop=True) for end in ("first", "second"))
    false = one["scan"] != other["scan"]
    rows = {}
    drawn = [kind for kind in KINDS if kind in set(images["kind"])]
    for name, kinds in ({kind: [kind] for kind in drawn} | {"all": drawn}).items():
        of_one, of_other = one["kind"].isin(kinds), other["kind"].isin(kinds)
        told = (one["kind"] == ORIGINAL) & of_other | of_one & (other["kind"] == ORIGINAL)
        involved = of_one | of_other | (name == "all")
        count, found, wrong = images["kind"].isin(kinds).sum(), (told & ~false).sum(), (involved & false).sum()
        precision = 100 * (1 - wrong / involved.sum()) if involved.any() else float("nan")
        rows[name] = (count, found, 100 * found / count, wrong, precision)
    columns = ["pairs", "found", "recall", "false pairs", "precision"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns).rename_axis("kind")


def different(images: pd.DataFrame) -> int:
    """Number of pairs of images of different scans: those that could be found falsely."""
    return int((len(images) ** 2 - (images["scan"].value_counts() ** 2).sum()) // 2)


def report(images: pd.DataFrame, scores: pd.DataFrame) -> str:
    """The table, and what share the false pairs are of all pairs of different scans."""
    table = scores.reset_index().to_string(index=False, float_format="{:.2f}".format)
    false, possible = scores["false pairs"].to_dict()["all"], different(images)
    return (
        f"{table}\n{len(images):,} images; recall and precision in %; "
        f"false are {false} of {possible:,} pairs of different scans ({100 * false / possible:.4f} %)"
    )


def measure(table: pd.DataFrame) -> tuple[dict[str, float], pd.DataFrame]:
    """Search and split a catalogue: wall seconds by stage, CPU seconds and memory of the whole; and the pairs."""
    settings, laps = params.load().split, [_clock()]
    search = keypoints.candidates

    def candidates(*given: Any) -> Any:  # what is before it describes the images, what is after it compares
        laps.append(_clock())
        found = search(*given)
        laps.append(_clock())
        return found

    with mock.patch.object(keypoints, "candidates", candidates):
        pairs = duplicates.near_duplicates(table, settings.inliers, settings.correlation)
    laps.append(_clock())
    groups = duplicates.groups(table["image_id"].tolist(), pairs)
    splitting.split(table, groups, (), settings.test_share, settings.folds, settings.conflicts, settings.seed)
    laps.append(_clock())
    stages = ("describe", "candidates", "compare", "split")
    seconds = {stage: end[0] - start[0] for stage, start, end in zip(stages, laps, laps[1:], strict=False)}
    total, cpu = (laps[-1][kind] - laps[0][kind] for kind in (0, 1))
    spent = {"total s": total, "ms/image": 1000 * total / len(table), "CPU ms/image": 1000 * cpu / len(table)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images": len(table), "pairs": len(pairs), **seconds, **spent, "peak MiB": peak}, pairs


def alone(table: pd.DataFrame) -> tuple[dict[str, float], pd.DataFrame]:
    """`measure` in a process of its own, so that the peak of its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, table).result()


def audit(count: int, seed: int) -> dict[str, float]:
    """Draw `count` phantoms, `measure` them, and count which repeats (each tenth shows the ninth again) were found."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "phantoms")
        phantom.write(folder, phantom.CLASSES, count, seed)
        table = catalog.table(str(folder), catalog.scan(folder, catalog.list_files(folder, phantom.CLASSES)))
        row, pairs = alone(table)
    names = table["image_id"].tolist()
    repeats = {frozenset(names[at - 1 : at + 1]) for at, name in enumerate(names) if name.endswith("0)")}
    found = {frozenset(ends) for ends in zip(pairs["first"], pairs["second"], strict=True)}
    return row | {"repeats": len(repeats), "found": len(found & repeats), "false": len(found - repeats)}


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="copies | audit")
    copies = verbs.add_parser("copies", help="recall and precision by kind of copy, on phantoms")
    copies.add_argument("--scans", type=_at_least(2), default=150, help="independent scans to copy (default 150)")
    timed = verbs.add_parser("audit", help="seconds and memory of the split stage, by number of images")
    timed.add_argument("--counts", type=_at_least(1), nargs="+", default=[780, 1560, 3900, 7800], metavar="IMAGES",
                       help="phantoms to draw and search (default 780 1560 3900 7800); their files lie in $TMPDIR "
                       "meanwhile, 0.2 MB each")  # fmt: skip
    timed.add_argument("--catalog", type=Path, help="search these images instead, e.g. build/catalog.csv")
    for verb in (copies, timed):
        verb.add_argument("--seed", type=_at_least(0), default=1, help="seed of the phantoms (default 1)")
    arguments = parser.parse_args()
    try:
        if arguments.verb == "copies":
            _copies(arguments.scans, arguments.seed)
        else:
            _audit(arguments.counts, arguments.catalog, arguments.seed)
    except InputError as error:
        sys.exit(f"error: {error}")


def _copies(scans: int, seed: int) -> None:
    settings = params.load().split
    with tempfile.TemporaryDirectory() as folder:
        images = draw(Path(folder), scans, seed)
        pairs = duplicates.near_duplicates(images, settings.inliers, settings.correlation)
    print(report(images, score(images, pairs)))


def _audit(counts: Sequence[int], file: Path | None, seed: int) -> None:
    rows = [alone(catalog.read(file))[0]] if file else (audit(count, seed) for count in counts)
    for number, row in enumerate(rows):
        lines = pd.DataFrame([row]).to_string(index=False, float_format="{:.1f}".format, col_space=8).splitlines()
        print("\n".join(lines[min(number, 1) :]), flush=True)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
        return int(text)

    return number


def _clock() -> tuple[float, float]:
    """Wall seconds, and CPU seconds of this process and of its workers that have ended."""
    return time.monotonic(), sum(os.times()[:4])


def _draw_one(scan: int, folder: Path, seed: int, kinds: Collection[str]) -> list[tuple[Any, ...]]:
    number = scan // len(phantom.CLASSES)
    label, index = phantom.CLASSES[scan % len(phantom.CLASSES)], number + number // (phantom.REPEAT - 1) + 1
    original, _ = phantom.phantom(label, index, seed)  # never each tenth, which shows the ninth again
    rows = []
    for kind in (ORIGINAL, *kinds):
        random = np.random.default_rng([seed, scan, *kind.encode()])
        image = original if kind == ORIGINAL else KINDS[kind](original, random)
        file = folder / f"{scan} {kind}.png"
        image.save(file)
        rows.append((f"{scan}/{kind}", str(file), pixel_hash(image), scan, kind))
    return rows


if __name__ == "__main__":
    main()
