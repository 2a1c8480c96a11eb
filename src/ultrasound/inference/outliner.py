"""From a file to the outline of the lesion in it, without torch: what the served segmenter says.

The folder is that of `learning.segmenter`, with the graph of `learning.export` in it.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ultrasound import NOTICE
from ultrasound.errors import InputError
from ultrasound.images.preparation import MASK_THRESHOLD, Preparation
from ultrasound.inference import predictor, regions
from ultrasound.inference.familiarity import Familiarity
from ultrasound.inference.graph import LEVELS, Graph
from ultrasound.inference.predictor import Decoded
from ultrasound.inference.regions import Rule

MEASURES = ("lesion_area_share", "taller_than_wide", "circularity")  # of an answer; none where no lesion was found


@dataclasses.dataclass(frozen=True)
class Outliner:
    """A segmenter that answers.

    Attributes:
        graph: the networks.
        preparation: how a file becomes the networks' input.
        rule: which pixels are lesion.
        familiarity: which images the model can answer to.
        data_version: digest of the data that it has learnt from.
        version: NAME/NUMBER of the registered model, or what else to call it.
    """

    graph: Graph
    preparation: Preparation
    rule: Rule
    familiarity: Familiarity
    data_version: str
    version: str

    def decoded(self, content: bytes, name: str) -> Decoded:
        """As `Predictor.decoded`."""
        return predictor.decoded(self.preparation, content, name)

    def answers(self, decoded: Sequence[Decoded]) -> list[dict[str, Any]]:
        """Answer to decoded images: a dictionary each, its keys are the columns of the served model (see `columns`)."""
        pending = self.graph.start(np.stack([each.pixels for each in decoded]))
        reasons = [self.familiarity.abstains(each.unfit, each.pixels) for each in decoded]  # while that is computed
        found = []
        for each, levels, reason in zip(decoded, pending.result(), reasons, strict=True):
            inside = self.rule.mask(levels).astype(np.uint8) * 255
            mask = self.preparation.back(inside, each.place) > MASK_THRESHOLD
            left, top, right, bottom = each.place.box
            width, height = right - left, bottom - top
            shape = regions.shape(mask, width * height, max(width, height) / self.preparation.size)
            buffer = io.BytesIO()
            Image.fromarray(mask).save(buffer, "PNG")  # one bit a pixel
            found.append({
                "mask": base64.b64encode(buffer.getvalue()).decode(),
                "lesions": shape.regions,
                **{name: None if math.isnan(value) else value
                   for name, value in zip(MEASURES, shape[1:], strict=True)},
                "abstain": bool(reason),
                "abstain_reason": reason,
                "model_version": self.version,
                "data_version": self.data_version,
                "notice": NOTICE,
            })  # fmt: skip
        return found


def columns() -> dict[str, str]:
    """The columns of an answer -> string, long, boolean, or double; those of `MEASURES` may be null."""
    return {
        "mask": "string", "lesions": "long", **dict.fromkeys(MEASURES, "double"), "abstain": "boolean",
        "abstain_reason": "string", "model_version": "string", "data_version": "string", "notice": "string",
    }  # fmt: skip


def load(folder: Path, version: str) -> Outliner:
    """Read a segmenter for answering.

    Args:
        folder: what `Segmenter.save` and `learning.export` wrote.
        version: what answers say of the model's version.

    Raises:
        InputError: the folder holds no such segmenter, or a damaged one.
    """
    try:
        facts = json.loads((folder / "segmenter.json").read_text())
        return Outliner(
            Graph(folder, LEVELS),
            Preparation(**facts["preparation"]),
            Rule(**facts["rule"]),
            Familiarity.read(facts["familiarity"]),
            facts["data_digest"],
            version,
        )
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no segmenter: {Path(error.filename or '').name} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the segmenter in {folder} is damaged: {type(error).__name__}; train anew") from None
