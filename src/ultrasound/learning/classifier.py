"""Everything that an answer needs, saved and loaded as one folder: weights, labels, preparation, calibration.

`classifier.json` says what it is, `weights.safetensors` holds the network. No pickle is written or read. What serves it
without torch, the graphs of `learning/export.py`, may lie beside them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ultrasound.errors import InputError
from ultrasound.images.loading import Batches
from ultrasound.images.preparation import Pixels, Preparation
from ultrasound.inference.calibration import Calibration
from ultrasound.inference.familiarity import Familiarity
from ultrasound.learning.backbone import Network

BATCH = 32


class Ensemble(nn.Module):
    """The networks that answer together: probabilities are the mean over them, and over the mirrored image.

    Args:
        members: networks of the same classes.
        flip: answer to the image and its mirror image.
    """

    def __init__(self, members: Iterable[nn.Module], *, flip: bool) -> None:
        super().__init__()
        self.members, self.flip = nn.ModuleList(members), flip

    def forward(self, images: Tensor) -> Tensor:
        """(b, 1, height, width) float in [0, 1] -> (b, classes) logits, or logarithms of the mean probabilities."""
        views = [images, images.flip(-1)] if self.flip else [images]
        return self.combined([member(view) for member in self.members for view in views])

    @staticmethod
    def combined(logits: Sequence[Tensor]) -> Tensor:
        """The answer to an image from the logits of every member and view, each (b, classes)."""
        if len(logits) == 1:
            return logits[0]
        return torch.stack(list(logits)).float().log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Trained networks and how to use them.

    Attributes:
        network: maps prepared images to logits.
        labels: class names in the order of the logits.
        preparation: how a file becomes the network's input.
        data_digest: what it was trained on.
        calibration: None until it is known how the networks do on images that they have not learnt from.
        familiarity: which images are like those that it has learnt from; None until then, too.
    """

    network: Ensemble
    labels: tuple[str, ...]
    preparation: Preparation
    data_digest: str
    calibration: Calibration | None = None
    familiarity: Familiarity | None = None

    def raw(self, images: Pixels) -> NDArray[np.float64]:
        """Class probabilities before calibration of prepared images: (n, size, size) uint8 -> (n, classes)."""
        device = next(self.network.parameters()).device
        return predict(self.network, Batches(images, np.zeros(len(images), dtype=np.int64), BATCH, device))

    def probabilities(self, images: Pixels) -> NDArray[np.float64]:
        """Calibrated class probabilities of prepared images: (n, size, size) uint8 -> (n, classes)."""
        return self.calibrated.probabilities(self.raw(images))

    @property
    def calibrated(self) -> Calibration:
        """The calibration, which every saved classifier has."""
        assert self.calibration is not None, "this classifier was not calibrated"
        return self.calibration

    def save(self, folder: Path) -> None:
        """Write the classifier, which must be calibrated and know what it knows, into a new or empty folder."""
        calibration = self.calibrated
        assert self.familiarity is not None, "what this classifier knows was not measured"
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(weights, folder / "weights.safetensors")
        facts = {
            "labels": self.labels,
            "preparation": dataclasses.asdict(self.preparation),
            "architecture": cast(Network, self.network.members[0]).architecture,
            "members": len(self.network.members),
            "flip": self.network.flip,
            "data_digest": self.data_digest,
            "calibration": dataclasses.asdict(calibration),
            "familiarity": dataclasses.asdict(self.familiarity),
        }
        (folder / "classifier.json").write_text(json.dumps(facts, indent=2) + "\n")


def predict(network: nn.Module, batches: Batches) -> NDArray[np.float64]:
    """Class probabilities of every image, in full precision: (n, classes)."""
    network.eval()
    with torch.inference_mode():
        return softmax(torch.cat([network(images.float() / 255) for images, _ in batches.in_order()]))


def softmax(logits: Tensor) -> NDArray[np.float64]:
    """Logits on any device -> probabilities in double precision: (n, classes)."""
    probabilities: NDArray[np.float64] = logits.double().softmax(dim=1).cpu().numpy()
    return probabilities


def load(folder: Path) -> Classifier:
    """Read what `Classifier.save` wrote, onto the CPU, ready for inference.

    Raises:
        InputError: the folder holds no classifier, or a damaged one.
    """
    try:
        facts = json.loads((folder / "classifier.json").read_text())
        if "calibration" not in facts or "familiarity" not in facts:
            raise InputError(f"the classifier in {folder} was saved by an older version of this project: train anew")
        members = [Network(**facts["architecture"]) for _ in range(facts["members"])]
        network = Ensemble(members, flip=facts["flip"])
        network.load_state_dict(load_file(folder / "weights.safetensors"))
        calibration, familiarity = Calibration.read(facts["calibration"]), Familiarity.read(facts["familiarity"])
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no classifier: {Path(error.filename or '').name} is missing") from None
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"the classifier in {folder} is damaged: {error}") from None
    return Classifier(
        network.eval().requires_grad_(False),
        tuple(facts["labels"]),
        Preparation(**facts["preparation"]),
        facts["data_digest"],
        calibration,
        familiarity,
    )
