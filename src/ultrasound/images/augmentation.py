"""Random rotation, flip and contrast on batches, drawn anew for every image."""

from __future__ import annotations

import kornia.augmentation as K
from torch import Tensor, nn


class Augmentation(nn.Module):
    """Augment a batch on its device.

    Args:
        rotation: up to +- degrees, about the centre; the corners that come in are black, like a scanner's border.
        flip: probability of a left-right flip. Never up-down: the skin is above, shadows fall below.
        contrast: factor in [1 - contrast, 1 + contrast].
    """

    def __init__(self, rotation: float, flip: float, contrast: float) -> None:
        super().__init__()
        self.steps = nn.Sequential(
            K.RandomRotation(rotation, p=1.0 if rotation else 0.0),
            K.RandomHorizontalFlip(p=flip),
            K.RandomContrast((1 - contrast, 1 + contrast), p=1.0 if contrast else 0.0),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(b, 1, height, width) float in [0, 1] -> the same shape and range."""
        result: Tensor = self.steps(images)
        return result.clamp(0, 1)
