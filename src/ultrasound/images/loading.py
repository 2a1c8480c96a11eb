"""Prepared arrays -> batches that already lie on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from ultrasound.images.preparation import Pixels

LESION, UNKNOWN = 255, 128  # in a channel of masks; all of an image whose lesion nobody has outlined is unknown
FREE_SHARE = 0.5  # images are kept on the device if they take no more of its free memory


class Batches:
    """Images and targets as batches on a device.

    The images move there once if they fit. Otherwise each batch is read from `images`, which may be a memory map,
    while the step before it runs.

    Args:
        images: (n, height, width) uint8.
        targets: (n,) class numbers.
        rows: positions of the wanted images in both; all by default.
        batch_size: images a batch.
        masks: (n, height, width) bool, where the lesions are; images come with them as a second channel then.
        outlined: (n,) whether an image has a mask, be it empty.
        resident: whether the images are kept on the device; by default, if they fit into half of its free memory.
    """

    def __init__(
        self,
        images: Pixels,
        targets: NDArray[np.int64],
        batch_size: int,
        device: torch.device,
        rows: NDArray[np.int64] | None = None,
        *,
        masks: NDArray[np.bool_] | None = None,
        outlined: NDArray[np.bool_] | None = None,
        resident: bool | None = None,
    ) -> None:
        self.rows = np.arange(len(targets)) if rows is None else rows
        self._targets = torch.from_numpy(np.asarray(targets)[self.rows])
        self.targets = self._targets.to(device)
        self.batch_size, self.device = batch_size, device
        self._source, self._masks, self._outlined = images, masks, outlined
        size = len(self.rows) * int(np.prod(images.shape[1:])) * (1 if masks is None else 2)
        if resident is None:
            resident = size <= FREE_SHARE * _free_bytes(device)
        self._resident = self._stacked(self.rows).to(device) if resident else None

    def __len__(self) -> int:
        """Batches of a shuffled epoch."""
        whole, rest = divmod(len(self.targets), self.batch_size)
        return whole + (rest > 1)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, as (b, 1, height, width) uint8 and (b,) int64; with masks, (b, 2, height, width)."""
        yield from self._fetched(torch.arange(len(self.targets)))

    def shuffled(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch. The order follows from seed and epoch alone, so a resumed run repeats it.

        A last batch of a single image is left out, because batch normalisation cannot learn from one.
        """
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.targets), generator=generator)
        yield from self._fetched(order[: len(order) - (len(order) % self.batch_size == 1)])

    def _fetched(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        if self._resident is None:
            yield from _ahead(map(self._read, torch.split(order, self.batch_size)))
            return
        for chosen in torch.split(order.to(self.device), self.batch_size):
            yield self._resident[chosen], self.targets[chosen]

    def _read(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        images, targets = self._stacked(self.rows[chosen.numpy()]), self._targets[chosen]
        if self.device.type == "cuda":  # so that the copies do not hold up the device
            images, targets = images.pin_memory(), targets.pin_memory()
        return images.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)

    def _stacked(self, rows: NDArray[np.int64]) -> Tensor:
        images = torch.from_numpy(np.asarray(self._source[rows]))
        if self._masks is None:
            return images.unsqueeze(1)
        masks = torch.from_numpy(np.asarray(self._masks[rows])).to(torch.uint8) * LESION
        if self._outlined is not None:
            masks[torch.from_numpy(~self._outlined[rows])] = UNKNOWN
        return torch.stack([images, masks], dim=1)


def _ahead(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Read the next batch in a thread while the caller works on this one."""
    source = iter(batches)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, source, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, source, None)
            yield batch


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else int(psutil.virtual_memory().available)
