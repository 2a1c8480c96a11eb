"""Heat maps of the images that a classifier is scored on, whether they lie on the lesions, and what that is worth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ultrasound.images.preparation import Pixels
from ultrasound.learning import heat
from ultrasound.learning.backbone import Network
from ultrasound.learning.classifier import Classifier, Ensemble
from ultrasound.scoring import agreement, intervals, weighted
from ultrasound.scoring.agreement import Agreement, Maps
from ultrasound.scoring.intervals import Interval

CHECKED = 100  # images of the sanity check
SEED = 0


class Explained(NamedTuple):
    """Heat maps for the most probable class of every image.

    Attributes:
        maps: (n, h, w) of the size of the network's last features.
        agreement: of the maps, at the size of the images, with the lesion masks.
        similarity: what the maps are compared with -> mean rank correlation, with its interval.
    """

    maps: Maps
    agreement: Agreement
    similarity: dict[str, Interval]


def explain(
    model: Classifier, images: Pixels, masks: NDArray[np.bool_], groups: NDArray[np.int64], resamples: int
) -> tuple[NDArray[np.float64], Explained]:
    """Probabilities, uncalibrated, and heat maps of prepared images; the backbone must have feature maps.

    Args:
        images, masks: (n, size, size).
        groups: (n,) group of near-duplicates of each image.
    """
    raw, maps = heat.explain(model.network, images)
    found = agreement.agreement(maps, heat.enlarged(maps, images.shape[1]), masks)
    return raw, Explained(maps, found, _sanity(model, images, groups, resamples))


def _sanity(model: Classifier, images: Pixels, groups: NDArray[np.int64], resamples: int) -> dict[str, Interval]:
    """How alike the first network's maps stay when its weights are random, and how alike those of other images are.

    Maps that show what was learnt are no more alike than those of other images (Adebayo et al., 2018; the comparison
    with other images is that of Arun et al., Radiology: Artificial Intelligence 3, 2021).
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, min(CHECKED, len(images))).round().astype(int))
    some = np.ascontiguousarray(images[chosen])
    network = model.network.members[0]
    assert isinstance(network, Network)
    raw, trained = heat.explain(Ensemble([network], flip=False), some)
    compared = {"other_images": trained[_others(groups[chosen])]}
    for parts in ("head", "all"):
        other = Ensemble([heat.randomised(network, some, parts, SEED)], flip=False)
        _, compared[f"random_{parts}"] = heat.explain(other, some, raw.argmax(1), title=f"random weights, {parts}")
    found = {}
    for name, maps in compared.items():
        alike = agreement.similarity(trained, maps)
        statistic = {name: lambda weights, alike=alike: weighted.mean(alike, weights)}
        found[name] = intervals.interval(intervals.bootstrap(statistic, groups[chosen], resamples, SEED)[name])
    return found


def _others(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each image one of another group, as far as there are any."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    partner = np.empty_like(order)
    partner[order] = np.roll(order, sizes.max())
    return partner
