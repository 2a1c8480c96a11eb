"""The evaluation as one page that needs no server, no network and no script: figures and galleries are inside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from ultrasound import NOTICE
from ultrasound.images.report import STYLE
from ultrasound.scoring import metrics, outlines
from ultrasound.scoring.intervals import Interval

DPI, QUALITY = 100, 80


class Shown(NamedTuple):
    """An answer in a gallery.

    Attributes:
        picture: the scan, and where the network looked.
        image_id: of the catalogue.
        label, predicted: true class and most probable one.
        probabilities: class -> calibrated probability.
        prediction_set: the classes that it holds.
    """

    picture: Image.Image
    image_id: str
    label: str
    predicted: str
    probabilities: dict[str, float]
    prediction_set: list[str]


def page(
    title: str,
    facts: Mapping[str, str],
    content: Mapping[str, Any],
    scores: Mapping[str, Interval],
    slices: pd.DataFrame,
    figures: Mapping[str, Figure | bytes],
    galleries: Mapping[str, Sequence[Shown]],
) -> str:
    """Make the page.

    Args:
        facts: what names model, data and code, as they are to be read.
        content: what evaluation.json holds.
        scores: name -> score with its interval.
        slices: what `evaluation.by_slice` returns.
        figures: name -> figure, or PNG bytes.
        galleries: title -> answers.

    Returns:
        HTML, all in one.
    """
    return _rendered(
        "report.html", title=title, facts=facts, content=content, scores=scores, slices=slices.to_dict("records"),
        figures=figures, metrics=metrics.METRICS, class_metrics=metrics.CLASS_METRICS,
        galleries={name: [(shown, _source(_jpeg(shown.picture), "jpeg")) for shown in found]
                   for name, found in galleries.items()},
    )  # fmt: skip


def outlines_page(
    title: str,
    facts: Mapping[str, str],
    content: Mapping[str, Any],
    scores: Mapping[str, Interval],
    slices: pd.DataFrame,
    figures: Mapping[str, Figure | bytes],
) -> str:
    """Make the page of a segmenter, from the same as `page`, but `slices` is what `outlines.by_slice` returns."""
    return _rendered(
        "outline_report.html", title=title, facts=facts, content=content, scores=scores,
        slices=slices.to_dict("records"), figures=figures, metrics=outlines.METRICS,
    )  # fmt: skip


def _rendered(template: str, *, figures: Mapping[str, Figure | bytes], **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"score": str, "title": metrics.title}
    pictures = {name: _source(_png(figure), "png") for name, figure in figures.items()}
    return environment.get_template(template).render(
        style=STYLE, notice=NOTICE, figures=pictures, Interval=Interval, **values
    )


def _png(figure: Figure | bytes) -> bytes:
    if isinstance(figure, bytes):
        return figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def _source(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
