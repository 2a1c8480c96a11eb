"""Random rotation, flip and contrast on batches, drawn anew for every image."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from torch import Tensor, nn


class Augmentation(nn.Module):
    """Augment a batch on its device.

    Args:
        rotation: up to +- degrees, about the centre; the corners that come in are black, like a scanner's border.
        flip: probability of a left-right flip. Never up-down: the skin is above, shadows fall below.
        contrast: distances from the image's mean are multiplied by a factor in [1 - contrast, 1 + contrast].
    """

    def __init__(self, rotation: float, flip: float, contrast: float) -> None:
        super().__init__()
        self.steps = nn.Sequential(
            K.RandomRotation(rotation, p=1.0 if rotation else 0.0),
            K.RandomHorizontalFlip(p=flip),
        )
        self.contrast = contrast

    def forward(self, images: Tensor) -> Tensor:
        """(b, 1, height, width) float in [0, 1] -> the same shape and range."""
        moved: Tensor = self.steps(images)
        mean = moved.mean(dim=(1, 2, 3), keepdim=True)
        # kornia's RandomContrast multiplies the image itself, which is gain: it would change the mean.
        factor = 1 + self.contrast * (2 * torch.rand_like(mean) - 1)
        return (mean + factor * (moved - mean)).clamp(0, 1)
