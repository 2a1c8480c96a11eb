"""Memory in a training: what the C library keeps, and how large a batch a GPU holds."""

from __future__ import annotations

import copy
import ctypes

import torch
from accelerate import Accelerator

from ultrasound.errors import InputError
from ultrasound.learning.backbone import Trainable

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)
LARGEST_BATCH = 32  # of train.batch_size=auto: larger ones give small data too few steps


class TooLargeError(InputError):
    """A batch that the GPU's memory does not hold."""


def keep_freed() -> None:
    """Let the C library keep what is freed; given back to the system, it is faulted in again in every step on a CPU.

    docs/benchmarks.md says what that is worth.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def batch_that_fits(network: Trainable, size: int, device: Accelerator, most: int = LARGEST_BATCH) -> int | None:
    """Largest batch of images of `size` pixels, `most` or a half, a quarter ... of it, that can be learnt from.

    Tries a step on a copy of the network, with room for the optimizer's and the average's copies of the weights.

    Returns:
        None if not even two images fit.
    """
    while most >= 2:
        try:
            _try_step(network, size, device, most)
        except torch.OutOfMemoryError:
            fits = False
        else:
            fits = True
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if fits:
            return most
        most //= 2
    return None


def _try_step(network: Trainable, size: int, device: Accelerator, count: int) -> None:
    trial = copy.deepcopy(network).train().requires_grad_(True)
    room = [torch.empty_like(weight) for weight in trial.parameters() for _ in range(3)]
    with device.autocast():
        output = trial(torch.zeros(count, 1, size, size, device=device.device))
    output.float().sum().backward()
    del room
