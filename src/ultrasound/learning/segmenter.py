"""A U-Net that finds the outline of lesions, and what its answers need, saved and loaded as one folder.

The decoder is that of segmentation-models-pytorch (Ronneberger et al., MICCAI 2015, with normalisation), the encoder
any of timm's backbones. `segmenter.json` says what it is, `weights.safetensors` holds the networks.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ultrasound.errors import InputError, ParameterError
from ultrasound.images.loading import Batches
from ultrasound.images.preparation import Pixels, Preparation
from ultrasound.inference.familiarity import Familiarity
from ultrasound.inference.regions import Rule
from ultrasound.learning import backbone
from ultrasound.learning.backbone import Trainable
from ultrasound.learning.classifier import Ensemble

DEPTH = 5  # halvings of the side
BATCH = 32


class Architecture(TypedDict):
    """The arguments of `UNet` that a saved one needs."""

    name: str
    width: int


class UNet(Trainable):
    """Grey images -> logits of each pixel being lesion.

    Args:
        name: timm model name of the encoder.
        width: channels of the decoder's first stage, each further one has half of them.

    Raises:
        ParameterError: timm knows no such model, or it yields no features at five resolutions.
    """

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.architecture: Architecture = {"name": name, "width": width}
        self.know_statistics(*backbone.statistics(name))
        try:
            unet = smp.Unet(
                f"tu-{name}", DEPTH, None, decoder_channels=[max(width >> stage, 8) for stage in range(DEPTH)]
            )
        except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            raise ParameterError(
                f"model.name={name}: this backbone does not yield features at {DEPTH} resolutions, each half of the "
                "one before, which a U-Net needs; take a convolutional one"
            ) from None
        self.backbone = unet.encoder
        self.head = nn.ModuleDict({"decoder": unet.decoder, "last": unet.segmentation_head})

    def forward(self, images: Tensor, first: int = 0, total: int | None = None) -> Tensor:
        """(b, 1, height, width) float in [0, 1] -> the same shape, logits.

        Args:
            first, total: as of `backbone.Network`; nothing is drawn here.
        """
        return self.answer(self.features(images))

    def features(self, images: Tensor) -> list[Tensor]:
        """What the decoder is given: (b, 1, height, width) float in [0, 1] -> (b, channels, h, w) a resolution."""
        features: list[Tensor] = self.backbone(self.normalised(images))
        return features

    def answer(self, features: list[Tensor]) -> Tensor:
        """What the decoder says to `features`: (b, 1, height, width) logits."""
        logits: Tensor = self.head["last"](self.head["decoder"](features))
        return logits


class Classed(nn.Module):
    """A U-Net with a second head that tells the class from the encoder's last features.

    Args:
        network: it stays what it is; the second head is not part of it.
        classes: number of classes.
    """

    def __init__(self, network: UNet, classes: int) -> None:
        super().__init__()
        self.network = network
        channels = network.backbone.out_channels[-1]
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

    def forward(self, images: Tensor, first: int = 0, total: int | None = None) -> tuple[Tensor, Tensor]:
        """As `UNet.forward`, and (b, classes) logits."""
        features = self.network.features(images)
        return self.network.answer(features), self.head(features[-1])

    def classes(self, images: Tensor, *, flip: bool) -> Tensor:
        """The class alone: (b, 1, height, width) float in [0, 1] -> (b, classes) logits.

        Args:
            flip: of the image and its mirror image together, as of `classifier.Ensemble`.
        """
        views = [images, images.flip(-1)] if flip else [images]
        return Ensemble.combined([self.head(self.network.features(view)[-1]) for view in views])


class Outlines(nn.Module):
    """The networks that answer together: probabilities are the mean over them, and over the mirrored image.

    Args:
        members: networks whose maps have the size of the image.
        flip: answer to the image and its mirror image.
    """

    def __init__(self, members: Iterable[nn.Module], *, flip: bool) -> None:
        super().__init__()
        self.members, self.flip = nn.ModuleList(members), flip

    def forward(self, images: Tensor) -> Tensor:
        """(b, 1, height, width) float in [0, 1] -> the same shape, probabilities of lesion."""
        found = []
        for member in self.members:
            found.append(member(images).float().sigmoid())
            if self.flip:
                found.append(member(images.flip(-1)).float().sigmoid().flip(-1))
        return torch.stack(found).mean(dim=0)


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """Trained networks and how to use them.

    Attributes:
        network: maps prepared images to probabilities of lesion.
        preparation: how a file becomes the network's input.
        data_digest: what it was trained on.
        rule: which pixels are lesion; None until that has been chosen on images that it has not learnt from.
        familiarity: which images are like those that it has learnt from; None until then, too.
    """

    network: Outlines
    preparation: Preparation
    data_digest: str
    rule: Rule | None = None
    familiarity: Familiarity | None = None

    def levels(self, images: Pixels) -> Pixels:
        """Probability of lesion of prepared images, in 255 steps: (n, size, size) uint8 -> the same shape and type."""
        device = next(self.network.parameters()).device
        return predict(self.network, Batches(images, np.zeros(len(images), dtype=np.int64), BATCH, device))

    def masks(self, images: Pixels) -> NDArray[np.bool_]:
        """Where the lesions of prepared images are: (n, size, size) uint8 -> bool."""
        assert self.rule is not None, "no rule was chosen for this segmenter"
        return np.stack([self.rule.mask(levels) for levels in self.levels(images)])

    def save(self, folder: Path) -> None:
        """Write the segmenter, whose rule and familiarity must be known, into a new or empty folder."""
        assert self.rule is not None, "no rule was chosen for this segmenter"
        assert self.familiarity is not None, "what this segmenter knows was not measured"
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(weights, folder / "weights.safetensors")
        facts = {
            "preparation": dataclasses.asdict(self.preparation),
            "architecture": cast(UNet, self.network.members[0]).architecture,
            "members": len(self.network.members),
            "flip": self.network.flip,
            "data_digest": self.data_digest,
            "rule": dataclasses.asdict(self.rule),
            "familiarity": dataclasses.asdict(self.familiarity),
        }
        (folder / "segmenter.json").write_text(json.dumps(facts, indent=2) + "\n")


def create(name: str, weights: str, width: int) -> UNet:
    """Make a U-Net and load the weights of its encoder.

    Args:
        weights: `imagenet`, `packaged`, `none`, or a file, as of `backbone.create`.

    Raises:
        ParameterError: an unknown or unfit model, or weights that do not exist or do not fit.
        InputError: the hub cannot be reached.
    """
    network = UNet(name, width)
    backbone.load_pyramid(network.backbone.model, name, weights)
    return network


def quantised(probabilities: Tensor) -> Tensor:
    """(b, 1, height, width) probabilities -> (b, height, width) uint8, in 255 steps."""
    return (probabilities[:, 0] * 255).round().to(torch.uint8)


def predict(network: nn.Module, batches: Batches) -> Pixels:
    """Probability of lesion in every pixel, in 255 steps: (n, height, width) uint8."""
    network.eval()
    with torch.inference_mode():
        found = [quantised(network(images[:, :1].float() / 255)).cpu() for images, _ in batches.in_order()]
    levels: Pixels = torch.cat(found).numpy()
    return levels


def load(folder: Path) -> Segmenter:
    """Read what `Segmenter.save` wrote, onto the CPU, ready for inference.

    Raises:
        InputError: the folder holds no segmenter, or a damaged one.
    """
    try:
        facts = json.loads((folder / "segmenter.json").read_text())
        members = [UNet(**facts["architecture"]) for _ in range(facts["members"])]
        network = Outlines(members, flip=facts["flip"])
        network.load_state_dict(load_file(folder / "weights.safetensors"))
        rule, familiarity = Rule(**facts["rule"]), Familiarity.read(facts["familiarity"])
        preparation, digest = Preparation(**facts["preparation"]), facts["data_digest"]
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no segmenter: {Path(error.filename or '').name} is missing") from None
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"the segmenter in {folder} is damaged: {error}") from None
    return Segmenter(network.eval().requires_grad_(False), preparation, digest, rule, familiarity)
