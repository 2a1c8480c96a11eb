"""Random changes of ultrasound images on batches, on their device, drawn anew for every image.

What is drawn is kept apart from its use, so that an image and its lesion mask move alike. Nothing turns a scan upside
down: the skin is above, shadows and enhancement lie below a lesion.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ultrasound.sections import Augment

GRAIN = 2  # pixels of one grain of the added speckle


class Draws(NamedTuple):
    """What was drawn for n images.

    Attributes:
        motion: (n, 2, 3) where each pixel comes from, in the units of `torch.nn.functional.affine_grid`.
        contrast, gain: (n, 1, 1, 1) factors.
        attenuation: (n, 1, 1, 1) change of brightness at the lower edge, a share; none at the skin.
        speckle: (n, 1, height, width) factors of the pixels.
    """

    motion: Tensor
    contrast: Tensor
    gain: Tensor
    attenuation: Tensor
    speckle: Tensor


class Augmentation:
    """Augment batches as `Augment` says. Random numbers come from torch's generator of the images' device."""

    def __init__(self, settings: Augment) -> None:
        self.settings = settings

    def __call__(self, images: Tensor) -> Tensor:
        """(n, 1, height, width) float in [0, 1] -> the same shape and range."""
        return self.apply(images, self.draw(images))

    def draw(self, images: Tensor) -> Draws:
        """Draw the changes of a batch (n, 1, height, width)."""
        settings, count = self.settings, len(images)

        def spread(width: float) -> Tensor:  # even in +- width
            return width * (2 * torch.rand(count, 1, 1, 1, device=images.device) - 1)

        angle = spread(math.radians(settings.rotation)).flatten()
        flip = 1 - 2 * (torch.rand(count, device=images.device) < settings.flip).float()
        zoom = 1 + spread(settings.scale).flatten()
        # A pixel of the result looks up where it came from: turned back, shrunk by the magnification, then mirrored.
        cosine, sine = angle.cos() / zoom, angle.sin() / zoom
        shift = 2 * torch.cat([spread(settings.shift), spread(settings.shift)], 1).flatten(1)
        aspect = images.shape[2] / images.shape[3]  # grid units are half sides, so that a turn must know the shape
        motion = torch.stack(
            [
                torch.stack([flip * cosine, flip * sine * aspect, shift[:, 0]], 1),
                torch.stack([-sine / aspect, cosine, shift[:, 1]], 1),
            ],
            dim=1,
        )
        shape = (count, 1, math.ceil(images.shape[2] / GRAIN), math.ceil(images.shape[3] / GRAIN))
        strength = settings.speckle * torch.rand(count, 1, 1, 1, device=images.device)
        grains = F.interpolate(torch.randn(shape, device=images.device), images.shape[2:], mode="bilinear")
        return Draws(
            motion, 1 + spread(settings.contrast), 1 + spread(settings.gain), spread(settings.attenuation),
            1 + strength * grains,
        )  # fmt: skip

    @staticmethod
    def apply(images: Tensor, draws: Draws) -> Tensor:
        """Move (n, 1, height, width) float images in [0, 1] and change their brightness.

        What comes in from outside is black, as padding is; less contrast lifts both to a grey, like all that is black.
        """
        moved = _move(images, draws, "bilinear")
        mean = moved.mean(dim=(1, 2, 3), keepdim=True)
        depth = torch.linspace(0, 1, images.shape[2], device=images.device)[:, None]
        # Speckle is a factor, so that it leaves black black.
        factor = draws.gain * (1 + draws.attenuation * depth) * draws.speckle
        return ((mean + draws.contrast * (moved - mean)).clamp(0, 1) * factor).clamp(0, 1)

    @staticmethod
    def apply_to_masks(masks: Tensor, draws: Draws) -> Tensor:
        """Move (n, 1, height, width) float masks of 0 and 1 as `apply` moves their images."""
        return _move(masks, draws, "nearest")


def _move(images: Tensor, draws: Draws, mode: str) -> Tensor:
    grid = F.affine_grid(draws.motion, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, align_corners=False)
