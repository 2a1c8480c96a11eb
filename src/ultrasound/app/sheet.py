"""An answer as a sheet of paper: one HTML file that needs nothing else, and prints on one A4 page."""

from __future__ import annotations

import datetime
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image

from ultrasound import NOTICE
from ultrasound.app import pictures, words
from ultrasound.app.asking import Answer, Outline

TEMPLATE = Path(__file__).with_suffix(".html")


def render(
    scan: Image.Image, answer: Answer, digest: str, opacity: float, time: datetime.datetime, *, is_synthetic: bool,
    file_name: str = "", outline: Outline | None = None,
) -> str:  # fmt: skip
    """Make the sheet. Where the model abstained it says so, without class, probabilities and heat map.

    Args:
        scan: the picture that the model saw.
        digest: hexadecimal SHA-256 of its file; its beginning stands on the sheet.
        opacity: of the heat map, 0 to 1.
        time: of the answer, with a time zone.
        file_name: is written on the sheet unless it is empty.
        outline: is drawn if the segmenter has found a lesion.

    Returns:
        HTML with the pictures in it.

    Raises:
        InputError: the heat map or the outline does not fit the scan.
    """
    kind = "Synthetic phantom" if is_synthetic else "Image as the model saw it"
    shown = [{"source": pictures.data_uri(scan), "alt": kind, "caption": kind, "is_heat": False}]
    if answer.heat_map and not answer.abstain and not pictures.is_cold(answer.heat_map):
        covered = pictures.data_uri(pictures.overlay(scan, answer.heat_map, opacity))
        caption = words.heat_map(answer.label)
        shown.append({"source": covered, "alt": f"Heat map for {answer.label}", "caption": caption, "is_heat": True})
    if outline is not None and outline.lesions and not outline.abstain:
        drawn = pictures.data_uri(pictures.outlined(scan, outline.mask))
        shown.append({"source": drawn, "alt": words.OUTLINE, "caption": words.outline(outline), "is_heat": False})
    facts = {
        "Image (SHA-256)": digest[:16], "Size": f"{scan.width} x {scan.height} pixels", "Model": answer.model_version,
        "Trained on data": answer.data_version, "Time": time.isoformat(" ", "minutes"),
    }  # fmt: skip
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = words.percent
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=words.SHEET_TITLE, notice=NOTICE, footer=words.NO_PHYSICIAN, answer=answer, figures=shown,
        heading=words.heading(answer.label, answer.probabilities[answer.label]), sentences=words.sentences(answer),
        facts=({"File": file_name} if file_name else {}) | facts, gradient=pictures.gradient(),
    )  # fmt: skip
