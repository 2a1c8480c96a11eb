"""From a file to an answer, without torch: what the served model, batch prediction and the app's server say.

The folder is that of `learning.classifier`, with the graphs of `learning.export` in it.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ultrasound import NOTICE
from ultrasound.errors import InputError
from ultrasound.images.preparation import Pixels, Place, Preparation
from ultrasound.inference import familiarity, scan
from ultrasound.inference.calibration import Calibration, softmax
from ultrasound.inference.familiarity import Familiarity
from ultrasound.inference.graph import Graph

MAX_IMAGES = 16  # of one request


class Decoded(NamedTuple):
    """An image that can be answered.

    Attributes:
        pixels: (size, size) uint8, as the networks see it.
        place: where that lies in the image as it was sent, which is not kept: sixteen of them may take a gigabyte.
        unfit: why the model must abstain from it whatever it shows, a sentence, or nothing.
    """

    pixels: Pixels
    place: Place
    unfit: str


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A classifier that answers.

    Attributes:
        graph: the networks.
        labels: class names in the order of the logits.
        preparation: how a file becomes the networks' input.
        calibration: how probabilities become answers.
        familiarity: which images the model can answer to.
        data_version: digest of the data that it has learnt from.
        version: NAME/NUMBER of the registered model, or what else to call it.
    """

    graph: Graph
    labels: tuple[str, ...]
    preparation: Preparation
    calibration: Calibration
    familiarity: Familiarity
    data_version: str
    version: str

    @property
    def positive(self) -> int:
        """Number of the class that the operating point is for."""
        return self.labels.index(self.calibration.positive)

    def decoded(self, content: bytes, name: str) -> Decoded:
        """Decode and prepare the bytes of a PNG, JPEG or DICOM file.

        Raises:
            InputError: what `scan.open_scan` refuses; the sentence begins with `name`.
        """
        return decoded(self.preparation, content, name)

    def answers(self, decoded: Sequence[Decoded], *, explain: bool = False) -> list[dict[str, Any]]:
        """Answer to decoded images: a dictionary each, its keys are the columns of the served model (see `columns`).

        Args:
            explain: with `heat_map`, the base64 text of a grey PNG as large as the image: Grad-CAM of the most probable
                class, 255 where most spoke for it; empty where the network has no feature maps.
        """
        pixels = np.stack([each.pixels for each in decoded])
        pending = None if explain else self.graph.start(pixels)
        unlike = [self.familiarity.abstains(each.unfit, each.pixels) for each in decoded]  # while that is computed
        logits, maps = self.graph.explained(pixels) if pending is None else (pending.result(), None)
        probabilities = self.calibration.probabilities(softmax(logits.astype(np.float64)))
        called = probabilities[:, self.positive] >= self.calibration.threshold
        sets = self.calibration.sets(probabilities)
        found = []
        for number, each in enumerate(decoded):
            chosen = [label for label, is_in in zip(self.labels, sets[number], strict=True) if is_in]
            label = self.labels[int(probabilities[number].argmax())]
            reason = unlike[number] or ("" if chosen == [label] else _undecided(chosen))
            answer: dict[str, Any] = {"label": label}
            answer |= {f"p_{name}": float(p) for name, p in zip(self.labels, probabilities[number], strict=True)}
            answer |= {
                f"{self.calibration.positive}_flag": bool(called[number]),
                "prediction_set": chosen,
                "abstain": bool(reason),
                "abstain_reason": reason,
                "model_version": self.version,
                "data_version": self.data_version,
                "notice": NOTICE,
            }
            if explain:
                answer["heat_map"] = "" if maps is None else self._as_png(maps[number], each.place)
            found.append(answer)
        return found

    def _as_png(self, heat: NDArray[np.float32], place: Place) -> str:
        size = self.preparation.size
        larger = np.asarray(cv2.resize(heat, (size, size), interpolation=cv2.INTER_LINEAR), np.float32)
        share = larger / larger.max() if larger.max() > 0 else larger
        levels = (share * 255).round().astype(np.uint8)  # before it is enlarged: a fourth of the memory
        buffer = io.BytesIO()
        Image.fromarray(self.preparation.back(levels, place)).save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()


def decoded(preparation: Preparation, content: bytes, name: str) -> Decoded:
    """Decode and prepare the bytes of a PNG, JPEG or DICOM file.

    Raises:
        InputError: what `scan.open_scan` refuses; the sentence begins with `name`.
    """
    image = scan.open_scan(content, name)
    return Decoded(*preparation.placed(image), familiarity.unfit(image))


def columns(labels: Sequence[str], positive: str) -> dict[str, str]:
    """The columns of an answer without `heat_map` -> string, double, boolean, or strings for a list of them."""
    return {
        "label": "string", **{f"p_{label}": "double" for label in labels}, f"{positive}_flag": "boolean",
        "prediction_set": "strings", "abstain": "boolean", "abstain_reason": "string", "model_version": "string",
        "data_version": "string", "notice": "string",
    }  # fmt: skip


def load(folder: Path, version: str) -> Predictor:
    """Read a classifier for answering.

    Args:
        folder: what `Classifier.save` and `learning.export` wrote.
        version: what answers say of the model's version.

    Raises:
        InputError: the folder holds no such classifier, or a damaged one.
    """
    try:
        facts = json.loads((folder / "classifier.json").read_text())
        return Predictor(
            Graph(folder),
            tuple(facts["labels"]),
            Preparation(**facts["preparation"]),
            Calibration.read(facts["calibration"]),
            Familiarity.read(facts["familiarity"]),
            facts["data_digest"],
            version,
        )
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no classifier: {Path(error.filename or '').name} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the classifier in {folder} is damaged: {type(error).__name__}; train anew") from None


def _undecided(chosen: Sequence[str]) -> str:
    if not chosen:
        return "No class is probable enough: the model has learnt from few images like this one."
    if len(chosen) == 1:
        return f"The most probable class and the only one that cannot be ruled out, {chosen[0]}, differ."
    return f"The model cannot decide between {', '.join(chosen[:-1])} and {chosen[-1]}."
