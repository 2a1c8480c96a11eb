"""Prepared arrays -> batches that already lie on the device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ultrasound.images.preparation import Pixels


class Batches:
    """Images and targets, moved to the device once; batches are slices of them.

    Args:
        images: (n, height, width) uint8.
        targets: (n,) class numbers.
        batch_size: images a batch; a last batch of a single image is left out in shuffled epochs, because batch
            normalisation cannot learn from one.
    """

    def __init__(self, images: Pixels, targets: NDArray[np.int64], batch_size: int, device: torch.device) -> None:
        self.images = (
            torch.from_numpy(np.array(images)).unsqueeze(1).to(device)
        )  # a copy: the source may be a read-only map
        self.targets = torch.from_numpy(targets).to(device)
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Batches of a shuffled epoch."""
        whole, rest = divmod(len(self.targets), self.batch_size)
        return whole + (rest > 1)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, as (b, 1, height, width) uint8 and (b,) int64."""
        yield from zip(*(torch.split(part, self.batch_size) for part in (self.images, self.targets)), strict=True)

    def shuffled(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch. The order follows from seed and epoch alone, so a resumed run repeats it."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.targets), generator=generator).to(self.targets.device)
        for chosen in torch.split(order, self.batch_size):
            if len(chosen) > 1:
                yield self.images[chosen], self.targets[chosen]
