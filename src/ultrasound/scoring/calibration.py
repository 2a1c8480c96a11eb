"""How far probabilities can be believed, and decisions on them that are fixed before the test set is looked at.

All three are fitted on images that the predicting networks had not learnt from. Sources: temperature scaling, Guo et
al., ICML 2017; prediction sets with the same coverage for every class, Vovk, ACML 2012, and Sadinle, Lei and Wasserman,
J Am Stat Assoc 114, 2019; decision curves, Vickers and Elkin, Med Decis Making 26, 2006.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ultrasound.scoring.metrics import Flags, Probabilities, Targets

LEAST = np.finfo(np.float64).tiny  # a probability of 0 has a logarithm, too
LOG_TEMPERATURES = (-3.0, 3.0)


def temperature(probabilities: Probabilities, targets: Targets) -> float:
    """The temperature that gives these images the lowest log loss: (n, classes), (n,) -> above 0; 1 changes nothing.

    One number for all classes and images: it cannot change which class is the most probable one.
    """
    logits = np.log(probabilities.clip(LEAST))

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / math.exp(log_temperature), axis=1)
        return -float(scaled[np.arange(len(targets)), targets].mean())

    return math.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-6}).x)


def operating_point(probability: Probabilities, is_positive: Flags, sensitivity: float) -> float:
    """The threshold of the highest specificity among those of at least this sensitivity; at or above it is positive.

    It lies midway between the lowest probability that must be called positive and the next lower one, so that the last
    digit of a probability decides nothing.

    Args:
        probability: (n,) of the positive class.
        is_positive: (n,).
        sensitivity: above 0, at most 1.
    """
    positive = np.sort(probability[is_positive])[::-1]
    needed = positive[math.ceil(sensitivity * len(positive) - 1e-9) - 1]
    below = probability[probability < needed]
    return float((needed + below.max(initial=0.0)) / 2)


def set_thresholds(probabilities: Probabilities, targets: Targets, coverage: float) -> tuple[float, ...]:
    """For each class, the least probability with which it is in the prediction set.

    Of new images of a class that are like these, at least the share `coverage` has that class in its set (split
    conformal prediction, class by class). A class of fewer than coverage / (1 - coverage) images is in every set.
    """
    found = []
    for number in range(probabilities.shape[1]):
        own = np.sort(probabilities[targets == number, number])[::-1]
        rank = math.ceil((len(own) + 1) * coverage - 1e-9)
        found.append(float(own[rank - 1]) if rank <= len(own) else 0.0)
    return tuple(found)


def reliability(probabilities: Probabilities, targets: Targets, bins: int = 10) -> pd.DataFrame:
    """How often the most probable class is right, by its probability: bins of equal numbers of images.

    Returns:
        One row a bin: images, confidence (mean of the highest probability), accuracy.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return pd.DataFrame(
        [{"images": len(part), "confidence": confidence[part].mean(), "accuracy": right[part].mean()} for part in parts]
    )


def decision_curve(probability: Probabilities, is_positive: Flags, thresholds: NDArray[np.float64]) -> pd.DataFrame:
    """Net benefit of acting on a probability of at least a threshold, of acting on every image, and on none.

    A threshold p says that one missed positive is worth (1 - p) / p false alarms.

    Returns:
        One row a threshold: threshold, model, all, none; in true positives an image.
    """
    odds = thresholds / (1 - thresholds)
    called = probability[None] >= thresholds[:, None]
    model = (called & is_positive).mean(axis=1) - odds * (called & ~is_positive).mean(axis=1)
    prevalence = is_positive.mean()
    every = prevalence - (1 - prevalence) * odds
    return pd.DataFrame({"threshold": thresholds, "model": model, "all": every, "none": 0.0})
