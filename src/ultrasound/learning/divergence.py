"""A training whose loss is no longer finite is stopped, at once and without making a GPU wait."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ultrasound.errors import InputError

REMEDY = "lower train.learning_rate, or set train.clip=1"


class DivergedError(InputError):
    """The loss is no longer finite."""


class LossWatch:
    """Looks at the loss of every step; on a GPU, while the next step runs."""

    def __init__(self) -> None:
        self._coming: tuple[Tensor, torch.cuda.Event | None, str] | None = None

    def see(self, loss: Tensor, epoch: int, step: int, rate: float) -> None:
        """Take the loss of a step; raises `DivergedError` for this one, or on a GPU for the one before."""
        self.end()
        event = torch.cuda.Event() if loss.is_cuda else None  # type: ignore[no-untyped-call]
        copy = loss.to("cpu", non_blocking=True)
        if event:
            event.record()
        self._coming = copy, event, f"in epoch {epoch}, batch {step}, at learning rate {rate:.2g}"
        if not event:
            self.end()

    def end(self) -> None:
        """Look at the last loss."""
        if not self._coming:
            return
        loss, event, where = self._coming
        if event:
            event.synchronize()
        if not math.isfinite(value := float(loss)):
            raise DivergedError(f"the loss is {value} {where}: {REMEDY}")
        self._coming = None
