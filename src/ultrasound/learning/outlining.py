"""Learning where the lesion lies beside what it is: a second, small head, used in training alone.

The masks tell the backbone which part of a scan its answer should come from; burnt-in text, calipers and the border are
then worth less. Sources: multi-task learning (Caruana, Machine Learning 28, 1997); Dice loss (Milletari et al., 3DV
2016) beside cross-entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ultrasound.errors import ParameterError
from ultrasound.images.loading import UNKNOWN
from ultrasound.learning.backbone import Network

CHANNELS, GROUPS = 64, 8


class Outliner(nn.Module):
    """A network with a second head that maps its last features but one, 1/16 of the image's side, to a lesion map.

    Args:
        network: it stays what it is; the second head is not part of it.

    Raises:
        ParameterError: its backbone gives no such features.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        try:
            with torch.inference_mode():
                _, features = network.eval().features_and_map(
                    torch.zeros(2, 1, *network.input_size, device=network.mean.device)
                )
        except (AttributeError, IndexError, TypeError):
            raise ParameterError(
                "train.segmentation_weight: this backbone gives no map of features; set it to 0"
            ) from None
        self.head = nn.Sequential(
            nn.Conv2d(features.shape[1], CHANNELS, 1), nn.GroupNorm(GROUPS, CHANNELS), nn.ReLU(),
            nn.Conv2d(CHANNELS, 1, 1),
        )  # fmt: skip

    def forward(self, images: Tensor, first: int = 0, total: int | None = None) -> tuple[Tensor, Tensor]:
        """As `Network.forward`, and the logits of a lesion in each cell of the map: (b, 1, height, width)."""
        pooled, features = self.network.features_and_map(images)
        return self.network.answer(pooled, first, total), self.head(features)


def is_known(masks: Tensor) -> Tensor:
    """(b, 1, height, width) uint8 as `Batches` yields them -> (b,): whether an image has a mask, be it empty."""
    return masks[:, 0, 0, 0] != UNKNOWN


def loss(maps: Tensor, masks: Tensor, known: Tensor, empty_weight: float = 1) -> Tensor:
    """Cross-entropy and Dice loss of lesion maps, summed over the images that have a mask.

    Args:
        maps: (b, 1, rows, columns) logits.
        masks: (b, 1, height, width) in [0, 1]; a cell of the map should give the lesion's share of it.
        known: (b,) whether an image has a mask.
        empty_weight: of the Dice loss where the mask is empty. It punishes a single found pixel there as hard as a
            lesion that is missed altogether.
    """
    share = F.adaptive_avg_pool2d(masks, (maps.shape[2], maps.shape[3]))
    entropy = F.binary_cross_entropy_with_logits(maps.float(), share, reduction="none").mean(dim=(1, 2, 3))
    found = torch.sigmoid(maps.float())
    overlap, both = (found * share).sum(dim=(1, 2, 3)), (found + share).sum(dim=(1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (both + 1)  # the 1 lets an empty map be right where there is no lesion
    weight = torch.where(share.sum(dim=(1, 2, 3)) > 0, 1.0, empty_weight)
    return ((entropy + dice * weight) * known).sum()
