"""One step of a training: a batch is augmented and learnt from. What is learnt is a task's matter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from ultrasound.images.augmentation import Augmentation
from ultrasound.images.loading import Batches
from ultrasound.learning import memory, processes, recipe
from ultrasound.learning.backbone import Trainable
from ultrasound.sections import Augment, Train


class Step(NamedTuple):
    """What a step gave, each summed over the batch.

    Attributes:
        loss: what was learnt from, and what it is to be divided by.
        weight: that divisor.
        more: name -> sum and divisor, of what is reported beside it.
        output: of this process's rows, where the training is scored on the way.
    """

    loss: Tensor
    weight: Tensor
    more: Mapping[str, tuple[Tensor, Tensor]]
    output: Tensor | None


class Stepper(ABC):
    """What takes the steps of one task and says how it does: networks, optimizer and losses.

    Args:
        network: on its device; it learns in place.
        training: what it will learn from.
        score: turns targets and answers into metrics.
    """

    monitor: str  # the validation metric that chooses the epoch
    has_small_answers = True  # those of every epoch may be kept

    def __init__(
        self, network: Trainable, training: Batches, settings: Train, augment: Augment, score: Any, device: Accelerator
    ) -> None:
        self.network, self.training, self.settings = network, training, settings
        self.score, self.device = score, device
        self.augmentation = Augmentation(augment)
        # Convolutions on a CPU and on tensor cores are faster where the channels lie together.
        network.to(memory_format=torch.channels_last)
        processes.share_batch_norm(network, device)
        self.learning = self.with_second_head(network)
        self.second_head: nn.Module | None = self.learning.head if self.learning is not network else None
        self.optimizer = device.prepare(recipe.optimizer(network, settings, fused=True, second_head=self.second_head))
        self.model: nn.Module = network
        self.frozen: bool | None = None

    def with_second_head(self, network: Trainable) -> Any:
        """The network, or a module around it that holds a second `head`, of the training alone."""
        return network

    def network_of(self, learning: Any) -> nn.Module:
        """The network in what `with_second_head` has returned, or in an average of it."""
        network: nn.Module = learning if self.second_head is None else learning.network
        return network

    @abstractmethod
    def prepared(self, images: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """Augment a whole batch as `Batches` yields it; the first of what comes out holds the images."""

    @abstractmethod
    def losses(self, batch: tuple[Tensor, ...], rows: slice) -> tuple[Tensor, Step]:
        """What to go down by, of these rows but divided by the whole batch, and the step."""

    @abstractmethod
    def scores(self, steps: list[Step], targets: Tensor) -> dict[str, float]:
        """Metrics of the training images of an epoch, as they were learnt from."""

    @abstractmethod
    def validate(self, learning: nn.Module, batches: Batches) -> tuple[dict[str, float], NDArray[Any]]:
        """The loss and the metrics of images that are not learnt from, and the answers: (n, ...).

        Args:
            learning: the network, with its second head if it has one; that of the steps, or its average.
        """

    def freeze(self, frozen: bool) -> None:
        """Let the backbone learn, or not."""
        if frozen == self.frozen:
            return
        self.frozen = frozen
        self.network.backbone.requires_grad_(not frozen)
        model = processes.wrap(self.learning, self.device)
        if self.settings.compile:
            model.compile()
        self.model = model

    def take(self, images: Tensor, target: Tensor) -> Step:
        """Learn from a batch, of which this process takes its rows.

        Args:
            images: (b, 1 or 2, height, width) uint8 as `Batches` yields them.
            target: (b,) class numbers.

        Raises:
            TooLargeError: the GPU's memory is too small for the batch.
        """
        batch = self.prepared(images, target)
        try:
            return self._learn(batch)
        except torch.OutOfMemoryError:
            pass  # what follows comes after the handler, whose traceback would keep the tensors alive
        self.optimizer.zero_grad()
        whole = batch[0]
        if (count := self.device.num_processes) > 1:  # the others are in the midst of a step: nothing can be tried now
            raise memory.TooLargeError(
                f"the memory of {self.device.device} is too small for its share of train.batch_size={len(whole)} over "
                f"{count} processes: try {len(whole) // 2}, or set it to auto"
            )
        fits = memory.batch_that_fits(self.network, whole.shape[-1], self.device, len(whole) // 2)
        raise memory.TooLargeError(
            f"the memory of {self.device.device} is too small for train.batch_size={len(whole)}: "
            + (f"{fits} would fit, or set it to auto" if fits else "not even 2 images fit, take a smaller model")
        )

    def _learn(self, batch: tuple[Tensor, ...]) -> Step:
        total, step = self.losses(batch, processes.share(self.device, len(batch[0])))
        self.optimizer.zero_grad()
        self.device.backward(total)
        if self.settings.clip:
            self.device.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        more = {name: (processes.summed(self.device, value), by) for name, (value, by) in step.more.items()}
        return step._replace(loss=processes.summed(self.device, step.loss.detach()), more=more)


def mean(parts: list[tuple[Tensor, Tensor]]) -> float:
    """The mean of sums over several steps, by their divisors."""
    total, by = (torch.stack(values).sum() for values in zip(*parts, strict=True))
    return float(total / by)
