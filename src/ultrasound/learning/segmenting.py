"""Learning where the lesion is, pixel by pixel; an image without one is to have none. Its class may be learnt, too.

Source of the second task: Caruana, Machine Learning 28, 1997.
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional as F

from ultrasound.images.loading import LESION, UNKNOWN, Batches
from ultrasound.images.preparation import Pixels
from ultrasound.learning import outlining, processes
from ultrasound.learning.segmenter import Classed, Outlines, quantised
from ultrasound.learning.step import Step, Stepper

SMALLEST_SHARE = 1e-6  # of a probability whose logarithm is taken


class Segmenting(Stepper):
    """The steps of a segmenter: cross-entropy and Dice loss of each image, as `outlining.loss`."""

    monitor = "dice"
    has_small_answers = False

    def with_second_head(self, network: Any) -> Any:
        """With the head that tells the class, where that is wanted."""
        if not self.settings.classification_weight:
            return network
        classes = int(self.training.targets.max()) + 1
        return Classed(network, classes).to(self.device.device)

    def prepared(self, images: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """Images with their masks, moved alike, as a second channel; who has a mask; class numbers."""
        pixels = images[:, :1].float() / 255
        draws = self.augmentation.draw(pixels)
        masks = self.augmentation.apply_to_masks(images[:, 1:].float() / LESION, draws)
        known = outlining.is_known(images[:, 1:]).float()
        return torch.cat([self.augmentation.apply(pixels, draws), masks], dim=1), known, target

    def losses(self, batch: tuple[Tensor, ...], rows: slice) -> tuple[Tensor, Step]:
        """The mean over the images with a mask, be it empty; and the classes' cross-entropy times its weight."""
        images, known, target = batch
        count, weight = self.device.num_processes, known.sum().clamp(min=1)
        with self.device.autocast():
            output = self.model(images[rows, :1], rows.start, len(images))
        maps, logits = output if self.second_head else (output, None)
        loss = outlining.loss(maps, images[rows, 1:], known[rows], self.settings.empty_weight)
        total = loss * (count / weight)  # the processes' gradients are averaged
        more = {}
        if logits is not None:
            entropy = F.cross_entropy(logits.float(), target[rows], reduction="sum")
            total = total + entropy * (self.settings.classification_weight * count / len(target))
            more["class_loss"] = (entropy.detach(), target.new_tensor(len(target)))
        return total, Step(loss, weight, more, None)

    def scores(self, steps: list[Step], targets: Tensor) -> dict[str, float]:
        """None beside the loss, which holds the Dice of the training images."""
        return {}

    def validate(self, learning: nn.Module, batches: Batches) -> tuple[dict[str, float], Pixels]:
        """The answers are probabilities of lesion in 255 steps, (n, height, width) uint8."""
        model = Outlines([self.network_of(learning)], flip=self.settings.test_flip).eval()
        learning.eval()
        found, losses, masks, classes = [], [], [], []
        with torch.inference_mode(), self.device.autocast():
            for images, _ in batches.in_order():
                mine = images[processes.share(self.device, len(images))]
                probabilities = model(mine[:, :1].float() / 255)
                known = outlining.is_known(mine[:, 1:]).float()
                logits = probabilities.clamp(SMALLEST_SHARE, 1 - SMALLEST_SHARE).logit()
                losses.append(outlining.loss(logits, mine[:, 1:].float() / LESION, known, self.settings.empty_weight))
                found.append(quantised(probabilities))
                masks.append(mine[:, 1])
                if isinstance(learning, Classed):
                    classes.append(learning.classes(mine[:, :1].float() / 255, flip=self.settings.test_flip))
        levels, truth = (processes.joined(self.device, parts).numpy() for parts in (found, masks))
        outlined = truth[:, 0, 0] != UNKNOWN
        loss = processes.summed(self.device, torch.stack(losses).sum()) / max(int(outlined.sum()), 1)
        scores: dict[str, Any] = dict(self.score(truth[outlined] == LESION, levels[outlined]))
        if classes:
            told = processes.joined(self.device, classes)
            numbers = range(told.shape[1])
            scores["macro_f1"] = float(
                f1_score(batches.targets.cpu(), told.argmax(dim=1), labels=numbers, average="macro", zero_division=0)
            )
        return {"loss": float(loss), **scores}, levels
