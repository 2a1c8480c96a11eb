"""The data report: one page on what the images are, which of them belong together, and where each of them stands.

The page needs no server, no network and no script: thumbnails and charts are inside it. The same tables and images give
the same bytes.
"""

from __future__ import annotations

import base64
import io
import itertools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from ultrasound import NOTICE
from ultrasound.errors import InputError
from ultrasound.images import catalog, counts, splitting
from ultrasound.images.annotations import flags as annotation_flags
from ultrasound.images.preparation import lesion, open_image, pixel_hash

TEMPLATE = Path(__file__).with_suffix(".html")
STYLE = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")  # of all the project's pages
THUMBNAIL, QUALITY = (150, 120), 60  # width and height that it fits into, pixels; JPEG quality
EXAMPLE, EXAMPLE_QUALITY = (180, 150), 75  # of the examples of each class
OUTLINE = (255, 214, 0)  # RGB, seen on every grey
EXAMPLES = 6  # of each class
FLAG_EXAMPLES = 6  # of each flag
WEAKEST = 15  # pairs of the lowest correlation, one a group
PLOT_WIDTH, PLOT_HEIGHT = 250, 190  # of a chart's area, in the units of its SVG


class Axis(NamedTuple):
    """A linear axis: `ticks` are (position, text), positions from 0 to `length`."""

    low: float
    high: float
    length: int
    ticks: list[tuple[float, str]]

    def at(self, value: float) -> float:
        """Where a value stands, in tenths of a unit to keep the page small."""
        return round((value - self.low) / (self.high - self.low) * self.length, 1)


def render(table: pd.DataFrame, splits: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Make the page, with a process a core for the thumbnails and a progress bar.

    Args:
        table: the catalogue, with its annotation columns; its image files are read.
        splits: of the same images in the same order.
        pairs: near-duplicates, `counts.PAIR_COLUMNS`; `first` and `second` are image ids.

    Returns:
        HTML, all in one.

    Raises:
        InputError: the tables do not fit together, or an image has changed since it was verified.
    """
    rows = counts.join(table, splits)
    flags = annotation_flags(table).set_axis(rows.index)
    classes = list(dict.fromkeys(rows["label"]))
    groups = counts.groups_of(rows, pairs)
    alike = [group for group in groups if not group.is_conflict]
    shares = counts.share_table(rows)
    examples = {label: _spread(rows.index[rows["label"] == label].tolist(), EXAMPLES) for label in classes}
    flagged = {name: _spread(rows.index[flags[name]].tolist(), FLAG_EXAMPLES) for name in flags}
    links = [group.links[-1] for group in groups if group.links and group.links[-1]["correlation"] is not None]
    weakest = sorted(links, key=lambda link: link["correlation"])[:WEAKEST]
    apart = counts.records(pairs[~pairs["joined"]])
    shown = [image_id for group in groups for image_id in group.members]
    shown += [pair[end] for pair in weakest + apart[:WEAKEST] for end in ("first", "second")]
    shown += [image_id for images in flagged.values() for image_id in images]
    images = {row["image_id"]: row for row in counts.records(rows)}
    jobs = [(images[image_id], False) for image_id in dict.fromkeys(shown)]
    jobs += [(images[image_id], True) for ids in examples.values() for image_id in ids]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        style=STYLE,
        notice=NOTICE,
        data_digest=catalog.digest(table),
        split_digest=splitting.digest(splits),
        rows=images,
        classes=classes,
        sizes=counts.size_table(rows),
        charts={"sizes": _size_charts(rows), "shares": _share_charts(rows)},
        plot=(PLOT_WIDTH, PLOT_HEIGHT),
        parts=counts.part_table(rows).to_dict("index"),
        shares=shares.to_dict("index"),
        deviation=shares["deviation"].max(),
        divided=counts.divided(rows),
        pairs=pairs,
        groups=alike,
        by_size=[(size, list(same)) for size, same in itertools.groupby(alike, lambda group: len(group.members))],
        conflicts=[group for group in groups if group.is_conflict],
        weakest=weakest,
        apart=apart[:WEAKEST],
        apart_count=len(apart),
        flags=counts.flag_table(flags, rows).to_dict("index"),
        flagged=flagged,
        any_flag=int(flags.any(axis=1).sum()),
        examples=examples,
        pictures=_pictures(jobs),
    )


def _pictures(jobs: Sequence[tuple[dict[str, Any], bool]]) -> dict[tuple[str, bool], dict[str, Any]]:
    """(image id, with outline) -> source, width and height of an `img`."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        made = tqdm(pool.map(_thumbnail, jobs, chunksize=8), "thumbnails", len(jobs), leave=False, disable=None)
        return {(row["image_id"], outlined): picture for (row, outlined), picture in zip(jobs, made, strict=True)}


def _thumbnail(job: tuple[dict[str, Any], bool]) -> dict[str, Any]:
    row, outlined = job
    image = open_image(Path(row["image"]), row["image"])
    if pixel_hash(image) != row["pixels"]:
        raise InputError(
            f"{row['image']} has changed since it was verified: restore it, or run `dvc repro --force download`"
        )
    box, quality = (EXAMPLE, EXAMPLE_QUALITY) if outlined else (THUMBNAIL, QUALITY)
    image.thumbnail(box, Image.Resampling.LANCZOS)
    if outlined:
        image = _outline(image, [file for file in row["masks"].split(catalog.SEPARATOR) if file])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True, subsampling=0 if outlined else 2)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"source": source, "width": image.width, "height": image.height}


def _outline(image: Image.Image, masks: Iterable[str]) -> Image.Image:
    inside = np.zeros((image.height, image.width), dtype=bool)
    for file in masks:
        mask = Image.fromarray(lesion(open_image(Path(file), file)))
        inside |= np.asarray(mask.convert("L").resize(image.size, Image.Resampling.BOX)) > 127
    pixels = np.array(image.convert("RGB"))
    pixels[ndimage.binary_dilation(inside, iterations=2) & ~inside] = OUTLINE
    return Image.fromarray(pixels)


def _size_charts(rows: pd.DataFrame) -> dict[str, Any]:
    """Width against height, one panel a class on the same axes."""
    x, y = _axis(rows["width"], PLOT_WIDTH), _axis(rows["height"], PLOT_HEIGHT)
    panels = {
        label: [(x.at(width), y.at(height)) for width, height in zip(part["width"], part["height"], strict=True)]
        for label, part in rows.drop_duplicates(["label", "width", "height"]).groupby("label")
    }
    return {"x": x, "y": y, "panels": panels}


def _share_charts(rows: pd.DataFrame) -> dict[str, Any]:
    """Histogram of the share of the image that is lesion, one panel a class, in per cent of the class's images."""
    shares = 100 * rows["lesion_share"].where(rows["lesions"] > 0)
    x = _axis(shares.fillna(0), PLOT_WIDTH)
    edges = np.linspace(x.low, x.high, 21)
    heights = {
        label: 100 * np.histogram(part.dropna(), edges)[0] / len(part) for label, part in shares.groupby(rows["label"])
    }
    y = _axis(pd.Series([0, *np.ravel(list(heights.values()))]), PLOT_HEIGHT)
    panels = {
        label: [(x.at(edge), y.at(height)) for edge, height in zip(edges[:-1], column, strict=True) if height]
        for label, column in heights.items()
    }
    return {"x": x, "y": y, "panels": panels, "bar": x.at(edges[1])}


def _axis(values: pd.Series, length: int) -> Axis:
    ticks = MaxNLocator(5).tick_values(values.min(), values.max())
    axis = Axis(ticks[0], ticks[-1], length, [])
    return axis._replace(ticks=[(axis.at(tick), f"{tick:g}") for tick in ticks])


def _spread(ids: Sequence[str], number: int) -> list[str]:
    """Up to `number` of `ids`, evenly over the list: nobody chose them."""
    positions = np.unique(np.linspace(0, len(ids) - 1, min(number, len(ids))).round().astype(int))
    return [ids[position] for position in positions]
