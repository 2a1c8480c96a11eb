"""What a network costs: parameters, operations, time for one image."""

from __future__ import annotations

import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from ultrasound.learning.backbone import Network

WARM_UP, TIMED = 3, 15


def parameters(network: Network) -> int:
    """Number of weights that can be learnt."""
    return sum(weights.numel() for weights in network.parameters())


def operations(network: Network, size: int) -> int:
    """Floating-point operations for one image of `size` pixels; a multiplication with an addition counts as two."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.eval()(torch.zeros(1, 1, size, size, device=next(network.parameters()).device))
    return int(counter.get_total_flops())


def latency(network: Network, size: int) -> float:
    """Seconds for one image of `size` pixels on the CPU: the median of several, after some that are not counted."""
    network = network.cpu().eval().to(memory_format=torch.channels_last)
    image, taken = torch.zeros(1, 1, size, size), []
    with torch.inference_mode():
        for number in range(WARM_UP + TIMED):
            started = time.perf_counter()
            network(image)
            if number >= WARM_UP:
                taken.append(time.perf_counter() - started)
    return statistics.median(taken)
