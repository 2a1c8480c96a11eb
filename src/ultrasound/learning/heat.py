"""Where a network looked: Grad-CAM of the last feature map, for single networks, ensembles and mirrored views.

Source: Selvaraju et al., ICCV 2017; the maps are made by Captum.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from captum.attr import LayerGradCam
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from ultrasound.images.preparation import Pixels
from ultrasound.learning.backbone import Network
from ultrasound.learning.classifier import Ensemble, softmax

BATCH = 16


class _FromMaps(nn.Module):
    """The part of a network after its last feature map; Captum is told of the map by `maps`, which changes nothing."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.maps = network, nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        return self.network.answer_to_maps(self.maps(maps))


def has_maps(network: Ensemble, size: int) -> bool:
    """Whether the last features of images of `size` pixels lie where they were seen; not so with most transformers."""
    member = cast(Network, network.members[0])
    device = next(network.parameters()).device
    with torch.no_grad():
        found = member.eval().maps(torch.zeros(1, 1, size, size, device=device))
    return found.ndim == 4 and found.shape[1] == member.backbone.num_features


def explain(
    network: Ensemble, images: Pixels, classes: NDArray[np.int64] | None = None, *, title: str = "heat maps"
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Probabilities of prepared images, and for one class of each what spoke for it; shows a progress bar.

    The network must have maps, see `has_maps`.

    Networks of an ensemble and views are explained one by one, from their own logits; each map is divided by its sum
    and the mean taken, so that all count alike.

    Args:
        images: (n, size, size) uint8.
        classes: (n,) class numbers to explain; None for the most probable class of each image.

    Returns:
        (n, classes) probabilities, uncalibrated; (n, h, w) maps of the size that the network's last features have,
        none negative, sum 1, or 0 everywhere if nothing spoke for the class.

    """
    device = next(network.parameters()).device
    network.eval()
    parts: list[tuple[NDArray[np.float64], NDArray[np.float32]]] = []
    batches = range(0, len(images), BATCH)
    for begin in tqdm(batches, title, leave=False, disable=None):
        part = torch.from_numpy(np.ascontiguousarray(images[begin : begin + BATCH])).to(device).unsqueeze(1) / 255
        wanted = None if classes is None else torch.from_numpy(classes[begin : begin + BATCH]).to(device)
        parts.append(_explained(network, part, wanted))
    probabilities, maps = (np.concatenate(each) for each in zip(*parts, strict=True))
    return probabilities, maps


def enlarged(maps: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Maps at the size of the prepared images, bilinearly: (n, h, w) -> (n, size, size)."""
    larger = nn.functional.interpolate(torch.from_numpy(maps).unsqueeze(1), size=(size, size), mode="bilinear")
    array: NDArray[np.float32] = larger[:, 0].numpy()
    return array


def randomised(network: Network, images: Pixels, parts: str, seed: int) -> Network:
    """A copy whose `head`, or `all` of it, has random weights, as before any training.

    With random weights the running statistics of batch normalisation are those of these images, as they would be in
    training; without them activations may die out, and maps differ for that reason alone.

    Args:
        images: (n, size, size) uint8.
    """
    torch.manual_seed(seed)
    copy = Network(**network.architecture)
    kept = {
        name: value for name, value in network.state_dict().items() if parts == "head" and not name.startswith("head.")
    }
    copy.load_state_dict({**copy.state_dict(), **kept})
    device = next(network.parameters()).device
    copy.to(device)
    if parts == "all":
        for module in copy.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # the statistics of what is seen now, and of nothing before
        copy.train()
        with torch.no_grad():
            copy.maps(torch.from_numpy(np.ascontiguousarray(images)).to(device).unsqueeze(1) / 255)
    return copy.eval().requires_grad_(False)


def _explained(
    network: Ensemble, images: Tensor, classes: Tensor | None
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    views = [
        (cast(Network, member), mirrored)
        for member in network.members
        for mirrored in ((False, True) if network.flip else (False,))
    ]
    maps, logits = [], []
    for member, mirrored in views:
        with torch.no_grad():
            found = member.maps(images.flip(-1) if mirrored else images)
            logits.append(member.answer_to_maps(found))
        maps.append(found)
    answer = network.combined(logits)
    target = answer.argmax(1) if classes is None else classes
    total = torch.zeros(len(images), *maps[0].shape[2:], device=images.device)
    for (member, mirrored), found in zip(views, maps, strict=True):
        rest = _FromMaps(member)
        heat = (
            LayerGradCam(rest, rest.maps)
            .attribute(found.detach().requires_grad_(), target=target, relu_attributions=True)[:, 0]
            .detach()
            .float()
        )
        whole = heat.sum(dim=(1, 2), keepdim=True)
        heat = torch.where(whole > 0, heat / whole, heat)
        total += heat.flip(-1) if mirrored else heat
    whole = total.sum(dim=(1, 2), keepdim=True)
    return softmax(answer), torch.where(whole > 0, total / whole, total).cpu().numpy()
