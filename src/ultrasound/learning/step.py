"""One step of a training: a batch is augmented, mixed, learnt from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ultrasound.images.augmentation import Augmentation
from ultrasound.images.loading import LESION
from ultrasound.learning import memory, outlining, processes, recipe
from ultrasound.learning.backbone import Network
from ultrasound.sections import Augment, Train


class Step(NamedTuple):
    """What a step gave: losses summed over the batch, what they are to be divided by, logits of this process's rows."""

    loss: Tensor
    outline_loss: Tensor
    weight: Tensor
    outlined: Tensor
    logits: Tensor


class Stepper:
    """What takes the steps: the network with its second head, if there is one, optimizer and losses.

    Args:
        network: on its device; it learns in place.
        weights: (classes,) of the classes in the loss.
    """

    def __init__(
        self, network: Network, settings: Train, augment: Augment, weights: Tensor, device: Accelerator
    ) -> None:
        self.network, self.settings, self.weights, self.device = network, settings, weights, device
        self.augmentation = Augmentation(augment)
        self.mixing = recipe.Mixing(augment, network.classes, settings.label_smoothing)
        # Convolutions on a CPU and on tensor cores are faster where the channels lie together.
        network.to(memory_format=torch.channels_last)
        processes.share_batch_norm(network, device)
        self.outliner = outlining.Outliner(network).to(device.device) if settings.segmentation_weight else None
        self.second_head = self.outliner.head if self.outliner else None
        self.optimizer = device.prepare(recipe.optimizer(network, settings, fused=True, second_head=self.second_head))
        self.model: nn.Module = network
        self.frozen: bool | None = None

    def freeze(self, frozen: bool) -> None:
        """Let the backbone learn, or not."""
        if frozen == self.frozen:
            return
        self.frozen = frozen
        self.network.backbone.requires_grad_(not frozen)
        model = processes.wrap(self.outliner or self.network, self.device)
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
        mixed, shares, known = self._augmented(images, target)
        try:
            return self._learn(mixed, shares, known)
        except torch.OutOfMemoryError:
            pass  # what follows comes after the handler, whose traceback would keep the tensors alive
        self.optimizer.zero_grad()
        if (count := self.device.num_processes) > 1:  # the others are in the midst of a step: nothing can be tried now
            raise memory.TooLargeError(
                f"the memory of {self.device.device} is too small for its share of train.batch_size={len(mixed)} over "
                f"{count} processes: try {len(mixed) // 2}, or set it to auto"
            )
        fits = memory.batch_that_fits(self.network, mixed.shape[-1], self.device, len(mixed) // 2)
        raise memory.TooLargeError(
            f"the memory of {self.device.device} is too small for train.batch_size={len(mixed)}: "
            + (f"{fits} would fit, or set it to auto" if fits else "not even 2 images fit, take a smaller model")
        )

    def _augmented(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is learnt from: images, with masks as a second channel if wanted; target shares; who has a mask."""
        pixels = images[:, :1].float() / 255
        draws = self.augmentation.draw(pixels)
        pixels, known = self.augmentation.apply(pixels, draws), torch.zeros(len(images), device=images.device)
        if self.outliner:
            known = outlining.is_known(images[:, 1:]).float()
            masks = self.augmentation.apply_to_masks(images[:, 1:].float() / LESION, draws)
            pixels = torch.cat([pixels, masks], dim=1)
        mixed, shares = self.mixing(pixels, target)
        if self.mixing.active:
            known = known[: len(mixed)] * known[: len(mixed)].flip(0)  # both of a pair
        return mixed, shares, known

    def _learn(self, images: Tensor, shares: Tensor, known: Tensor) -> Step:
        rows, count = processes.share(self.device, len(images)), self.device.num_processes
        weight, outlined = (shares * self.weights).sum(), known.sum().clamp(min=1)
        with self.device.autocast():
            output = self.model(images[rows, :1], rows.start, len(images))
        logits, maps = output if self.outliner else (output, None)
        loss, outline_loss = recipe.loss(logits, shares[rows], self.weights), torch.zeros_like(weight)
        total = loss * (count / weight)  # the processes' gradients are averaged
        if maps is not None:
            outline_loss = outlining.loss(maps, images[rows, 1:], known[rows])
            total = total + outline_loss * (self.settings.segmentation_weight * count / outlined)
        self.optimizer.zero_grad()
        self.device.backward(total)
        if self.settings.clip:
            self.device.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        loss, outline_loss = (processes.summed(self.device, each.detach()) for each in (loss, outline_loss))
        return Step(loss, outline_loss, weight, outlined, logits.detach())


def mean(steps: list[Step], value: str, weight: str) -> float:
    """The mean of one of their losses over several steps."""
    total, by = (torch.stack([getattr(step, name) for step in steps]).sum() for name in (value, weight))
    return float(total / by)
