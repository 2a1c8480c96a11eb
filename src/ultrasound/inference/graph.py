"""The ONNX graphs of a model, run by ONNX Runtime on CUDA where its GPU package is installed, else on the CPU."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ultrasound.errors import InputError
from ultrasound.images.preparation import Pixels

NETWORK, GRADIENTS = "network.onnx", "gradients.onnx"
LOGITS, LEVELS = "logits", "levels"  # what a classifier's graph answers, and a segmenter's
LANES = 2  # passes at once where several are asked for, each on its share of the cores
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class Graph:
    """What `learning.export` wrote, ready to run; safe to use from several threads.

    A pass that is alone runs on all cores. In company, each takes half of them: cores that wait for each other after
    every layer lose time whenever one of them is needed elsewhere, to decode the next image, say.

    Args:
        folder: holds network.onnx, and gradients.onnx where heat maps can be had.
        answer: what the network answers.

    Raises:
        InputError: a graph is missing or damaged.
    """

    def __init__(self, folder: Path, answer: str = LOGITS) -> None:
        self._answer = answer
        self._network = _session(folder / NETWORK)
        self._half = self._network
        if self._network.get_providers() == ["CPUExecutionProvider"]:
            self._half = _session(folder / NETWORK, threads=max((os.cpu_count() or 1) // LANES, 1))
        self._gradients = _session(folder / GRADIENTS) if (folder / GRADIENTS).is_file() else None
        self._maps = [output.name for output in self._network.get_outputs()[1:]]
        self._passes = ThreadPoolExecutor(LANES)
        self._asked = 0  # passes that run or wait
        self._counting = threading.Lock()

    def answers(self, pixels: Pixels) -> NDArray[Any]:
        """(n, size, size) uint8 -> (n, classes) float32 logits, or levels of lesion, (n, size, size) uint8."""
        return self.start(pixels).result()

    def start(self, pixels: Pixels) -> Future[NDArray[Any]]:
        """Ask for `answers`, and go on meanwhile."""
        self._count(1)
        return self._passes.submit(self._pass, pixels)

    def explained(
        self, pixels: Pixels, classes: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Logits, and Grad-CAM maps for one class of each image.

        Args:
            pixels: (n, size, size) uint8.
            classes: (n,) class numbers; None for the most probable class of each.

        Returns:
            (n, classes); (n, h, w), none negative, sum 1 or all 0; None where there are no heat maps.
        """
        if self._gradients is None:
            return self.answers(pixels), None
        names = [self._answer, *self._maps]
        logits, *features = self._passes.submit(self._network.run, names, {"pixels": pixels}).result()
        heats = []
        for row, number in enumerate(logits.argmax(1) if classes is None else classes):
            wanted = np.zeros((1, logits.shape[1]), np.float32)
            wanted[0, number] = 1
            # Views of an image stand as far apart as there are images: first all as they are, then all mirrored.
            own = [maps[row :: len(pixels)] for maps in features]
            given = {"wanted": wanted, **dict(zip(self._maps, own, strict=True))}
            weights = self._passes.submit(self._gradients.run, None, given).result()
            heats.append(_combined(own, weights))
        return logits, np.stack(heats)

    def _pass(self, pixels: Pixels) -> NDArray[Any]:
        try:
            session = self._network if self._asked == 1 else self._half
            return np.asarray(session.run([self._answer], {"pixels": pixels})[0])
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._counting:
            self._asked += more


def _combined(features: list[NDArray[np.float32]], weights: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean of the Grad-CAM maps of all members and views, each divided by its sum, as `learning.heat` has it."""
    total = np.zeros(features[0].shape[2:], np.float32)
    for maps, of_channels in zip(features, weights, strict=True):
        heats = np.einsum("vc,vchw->vhw", of_channels, maps).clip(0)
        for view, heat in enumerate(heats):
            share = heat / heat.sum() if heat.sum() > 0 else heat
            total += share[:, ::-1] if view else share
    whole = total.sum()
    return total / whole if whole > 0 else total


def _session(file: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """Load a graph for so many threads of its own, or as many as ONNX Runtime takes for itself."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Between two passes, threads that wait by spinning would take the cores from whoever decodes the next image.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    available = onnxruntime.get_available_providers()
    try:
        return onnxruntime.InferenceSession(
            file.read_bytes(), options, providers=[name for name in PROVIDERS if name in available]
        )
    except FileNotFoundError:
        raise InputError(f"{file} is missing: an older version of this project saved the model, train anew") from None
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise InputError(f"{file} is damaged ({type(error).__name__}): take it from the registry again") from None
