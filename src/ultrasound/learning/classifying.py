"""Learning which class an image is of: images may be mixed, and the lesion's outline may be a second task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from ultrasound.images.loading import LESION, Batches
from ultrasound.learning import outlining, processes, recipe
from ultrasound.learning.backbone import Network
from ultrasound.learning.classifier import Ensemble, softmax
from ultrasound.learning.step import Step, Stepper
from ultrasound.sections import Augment, Train

# (class numbers (n,), probabilities (n, classes)) -> metrics by name
Score = Callable[[NDArray[np.int64], NDArray[np.float64]], Mapping[str, float]]


class Classifying(Stepper):
    """The steps of a classifier; see `Stepper` for the arguments."""

    monitor = "macro_f1"

    def __init__(
        self, network: Network, training: Batches, settings: Train, augment: Augment, score: Score, device: Accelerator
    ) -> None:
        super().__init__(network, training, settings, augment, score, device)
        self.classes = network.classes
        self.weights = recipe.class_weights(training.targets, network.classes, settings.class_weights)
        self.mixing = recipe.Mixing(augment, network.classes, settings.label_smoothing)

    def with_second_head(self, network: Any) -> Any:
        """With the head that finds the outline, where that is wanted."""
        if not self.settings.segmentation_weight:
            return network
        return outlining.Outliner(network).to(self.device.device)

    def prepared(self, images: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """What is learnt from: images, with masks as a second channel if wanted; target shares; who has a mask."""
        pixels = images[:, :1].float() / 255
        draws = self.augmentation.draw(pixels)
        pixels, known = self.augmentation.apply(pixels, draws), torch.zeros(len(images), device=images.device)
        if self.second_head:
            known = outlining.is_known(images[:, 1:]).float()
            masks = self.augmentation.apply_to_masks(images[:, 1:].float() / LESION, draws)
            pixels = torch.cat([pixels, masks], dim=1)
        mixed, shares = self.mixing(pixels, target)
        if self.mixing.active:
            known = known[: len(mixed)] * known[: len(mixed)].flip(0)  # both of a pair
        return mixed, shares, known

    def losses(self, batch: tuple[Tensor, ...], rows: slice) -> tuple[Tensor, Step]:
        """Weighted cross-entropy of the classes, and the loss of the outline times its weight."""
        images, shares, known = batch
        count, weight = self.device.num_processes, (shares * self.weights).sum()
        with self.device.autocast():
            output = self.model(images[rows, :1], rows.start, len(images))
        logits, maps = output if self.second_head else (output, None)
        loss = recipe.loss(logits, shares[rows], self.weights)
        total = loss * (count / weight)  # the processes' gradients are averaged
        more = {}
        if maps is not None:
            outlined = known.sum().clamp(min=1)
            outline_loss = outlining.loss(maps, images[rows, 1:], known[rows])
            total = total + outline_loss * (self.settings.segmentation_weight * count / outlined)
            more["outline_loss"] = (outline_loss.detach(), outlined)
        return total, Step(loss, weight, more, logits.detach())

    def scores(self, steps: list[Step], targets: Tensor) -> dict[str, float]:
        """Of images that were not mixed: a mixed one has no class."""
        if self.mixing.active:
            return {}
        logits = processes.joined(self.device, [step.output for step in steps if step.output is not None])
        return dict(self.score(_numpy(targets), softmax(logits)))

    def validate(self, learning: nn.Module, batches: Batches) -> tuple[dict[str, float], NDArray[np.float64]]:
        """The answers are probabilities, (n, classes)."""
        model = Ensemble([self.network_of(learning)], flip=self.settings.test_flip).eval()
        found = []
        with torch.inference_mode(), self.device.autocast():
            for images, _ in batches.in_order():
                rows = processes.share(self.device, len(images))
                found.append(model(images[rows].float() / 255).float())
        logits, targets = processes.joined(self.device, found), batches.targets.cpu()
        weights = self.weights.cpu()
        loss = recipe.loss(logits, recipe.smooth(targets, self.classes, 0), weights) / weights[targets].sum()
        probabilities = softmax(logits)
        return {"loss": float(loss), **self.score(_numpy(targets), probabilities)}, probabilities


def _numpy(targets: Tensor) -> NDArray[np.int64]:
    array: NDArray[np.int64] = targets.cpu().numpy()
    return array
