"""The networks of a classifier or a segmenter as ONNX graphs, which ONNX Runtime runs without torch.

It is about twice as fast on a CPU. `network.onnx` maps prepared images to logits and to the last features, or to levels
of lesion; `gradients.onnx` maps those features and a class
to what Grad-CAM (Selvaraju et al., ICCV 2017) weighs them with, its gradients written out as a graph of their own. A
graph that does not answer as torch does is not kept.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from ultrasound.errors import InputError
from ultrasound.inference.graph import GRADIENTS, LEVELS, NETWORK, Graph
from ultrasound.learning import heat, segmenter
from ultrasound.learning.backbone import Network
from ultrasound.learning.classifier import Ensemble
from ultrasound.learning.segmenter import Outlines

Answering = TypeVar("Answering", Ensemble, Outlines)

OPSET = 17
TOLERANCE = 1e-4  # of logits and maps, between torch and the graph
CHECKED = 3  # images of the comparison


class _Views(nn.Module):
    """(b, size, size) uint8 -> (b, classes) logits, and of each member the last features of b or 2 b views."""

    def __init__(self, network: Ensemble, *, with_maps: bool) -> None:
        super().__init__()
        self.network, self.with_maps = network, with_maps

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        images = pixels.unsqueeze(1).float() / 255
        views = torch.cat([images, images.flip(-1)]) if self.network.flip else images
        logits: list[Tensor] = []
        maps: list[Tensor] = []
        for module in self.network.members:
            member = cast(Network, module)
            if self.with_maps:
                maps.append(member.maps(views))
                answers = member.answer_to_maps(maps[-1])
            else:
                answers = member(views)
            logits += answers.chunk(2) if self.network.flip else [answers]
        return self.network.combined(logits), *maps


class _Levels(nn.Module):
    """(b, size, size) uint8 -> the same shape and type, probability of lesion in 255 steps."""

    def __init__(self, network: Outlines) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return segmenter.quantised(self.network(pixels.unsqueeze(1).float() / 255))


class _Gradients(nn.Module):
    """(1, classes) one-hot, each member's last features of one image (views, c, h, w) -> (views, c) mean gradients."""

    def __init__(self, network: Ensemble) -> None:
        super().__init__()
        self.network = network

    def forward(self, wanted: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        found = []
        for module, features in zip(self.network.members, maps, strict=True):
            seen = features.detach().requires_grad_()
            logits = cast(Network, module).answer_to_maps(seen)
            (gradient,) = torch.autograd.grad(logits, seen, grad_outputs=wanted.expand(len(logits), -1))
            found.append(gradient.mean(dim=(2, 3)))
        return tuple(found)


def export(network: Ensemble, size: int, folder: Path) -> bool:
    """Write the graphs of a network into a folder.

    Args:
        network: on any device; it is copied to the CPU.
        size: side of the prepared images, pixels.

    Returns:
        Whether there are heat maps: not without feature maps (most transformers), nor where the exporter cannot write
        down the gradients of what the backbone does behind them.

    Raises:
        InputError: the graph answers otherwise than torch.
    """
    network = _on_cpu(network)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (CHECKED, size, size)).astype(np.uint8))
    has_maps = heat.has_maps(network, size)
    maps = [f"maps_{number}" for number in range(len(network.members) if has_maps else 0)]
    views = _Views(network, with_maps=has_maps).eval()
    (folder / NETWORK).write_bytes(_written(views, (pixels,), ["pixels"], ["logits", *maps], batch=True))
    with torch.no_grad():
        expected = network(pixels.unsqueeze(1).float() / 255).numpy()
    gap = float(np.abs(Graph(folder).answers(pixels.numpy()) - expected).max())
    if not gap <= TOLERANCE:
        raise InputError(
            f"the ONNX graph of this network answers otherwise than torch, by up to {gap:.1e} (allowed: "
            f"{TOLERANCE:.0e}), so that the model cannot be saved: choose another model.name"
        )
    return has_maps and _export_gradients(network, views, pixels, maps, folder)


def _export_gradients(network: Ensemble, views: _Views, pixels: Tensor, maps: list[str], folder: Path) -> bool:
    with torch.no_grad():
        features = views(pixels[:1])[1:]
    given = (torch.eye(cast(Network, network.members[0]).classes)[:1], *features)
    table = cast(Any, core_aten_decompositions())
    try:
        traced = make_fx(_Gradients(network), decomposition_table=table)(*given)
        written = _written(traced, given, ["wanted", *maps], [name.replace("maps", "weights") for name in maps])
        (folder / GRADIENTS).write_bytes(written)
        logits, found = Graph(folder).explained(pixels.numpy())
    except (
        Exception
    ):  # the tracer, the exporter and ONNX Runtime each raise their own, where they know an operation not
        (folder / GRADIENTS).unlink(missing_ok=True)
        return False
    _, expected = heat.explain(network, pixels.numpy(), logits.argmax(1))
    assert found is not None
    if not np.abs(found - expected).max() <= TOLERANCE:
        (folder / GRADIENTS).unlink()
        return False
    return True


def export_outlines(network: Outlines, size: int, folder: Path) -> None:
    """Write the graph of a segmenter's networks into a folder: prepared images to levels of 255, both uint8.

    Args:
        network: on any device; it is copied to the CPU.
        size: side of the prepared images, pixels.

    Raises:
        InputError: the graph answers otherwise than torch.
    """
    network = _on_cpu(network)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (CHECKED, size, size)).astype(np.uint8))
    graph = _written(_Levels(network).eval(), (pixels,), ["pixels"], [LEVELS], batch=True)
    (folder / NETWORK).write_bytes(graph)
    with torch.no_grad():
        expected = segmenter.quantised(network(pixels.unsqueeze(1).float() / 255)).numpy()
    found = Graph(folder, LEVELS).answers(pixels.numpy())
    gap = int(np.abs(found.astype(np.int16) - expected).max())
    if gap > 1:  # what lies between two levels may be rounded to either
        raise InputError(
            f"the ONNX graph of this network answers otherwise than torch, by up to {gap} of 255, so that the model "
            "cannot be saved: choose another model.name"
        )


def _on_cpu(network: Answering) -> Answering:
    members = []
    for module in network.members:
        member = cast(Any, module)
        copy = type(member)(**member.architecture)
        copy.load_state_dict({name: value.detach().cpu() for name, value in member.state_dict().items()})
        members.append(copy)
    return type(network)(members, flip=network.flip).eval().requires_grad_(False)


def _written(
    module: nn.Module, given: tuple[Tensor, ...], inputs: list[str], outputs: list[str], *, batch: bool = False
) -> bytes:
    """The graph of a module; `batch`: with any number of images."""
    axes = {name: {0: "batch"} for name in (*inputs, *outputs)} if batch else None
    write, buffer = cast(Any, torch.onnx.export), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was told what it traces
        # The newer exporter (dynamo=True) takes ten times as long for the same graph: see docs/decisions/0013.
        write(
            module, given, buffer, input_names=inputs, output_names=outputs, dynamic_axes=axes, opset_version=OPSET,
            dynamo=False,
        )  # fmt: skip
    return buffer.getvalue()
