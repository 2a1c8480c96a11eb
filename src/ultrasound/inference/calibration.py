"""How a network's probabilities become answers; `scoring/calibration.py` finds the numbers, this applies them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = np.finfo(np.float64).tiny  # a probability of 0 has a logarithm, too


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How the networks' probabilities become answers; fixed from images that they had not learnt from.

    Attributes:
        temperature: above 1, the networks were too certain.
        positive: the class that the operating point is for.
        threshold: at or above this probability an image is called positive.
        set_thresholds: at or above these probabilities a class is in the prediction set.
        sensitivity, coverage: what the thresholds were chosen for.
        images: how many the three were fitted on.
        fitted_on: which those were.
    """

    temperature: float
    positive: str
    threshold: float
    set_thresholds: tuple[float, ...]
    sensitivity: float
    coverage: float
    images: int
    fitted_on: str

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Calibration:
        """Make it from what `dataclasses.asdict` and JSON made of it.

        Raises:
            TypeError, KeyError: these are no such facts.
        """
        return cls(**{**facts, "set_thresholds": tuple(facts["set_thresholds"])})

    def probabilities(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated probabilities, by temperature scaling (Guo et al., ICML 2017): (n, classes) -> the same shape."""
        return softmax(np.log(raw.clip(LEAST)) / self.temperature)

    def sets(self, probabilities: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which classes the prediction set of each image holds: (n, classes) calibrated -> (n, classes)."""
        return probabilities >= np.array(self.set_thresholds)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits -> probabilities: (n, classes)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
