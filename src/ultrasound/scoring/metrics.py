"""The table of metrics: name -> function, definition, source. A new metric is a new line here, and one in `weighted`.

All take class numbers and probabilities; the predicted class is the most probable one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

Targets = NDArray[np.int64]
Probabilities = NDArray[np.float64]
Flags = NDArray[np.bool_]

CALIBRATION_BINS = 15  # of the expected calibration error, as Guo et al.


class Metric(NamedTuple):
    """A metric of the whole.

    Attributes:
        of: (class numbers (n,), probabilities (n, classes)) -> value.
        definition: in a sentence.
        source: of the definition.
        lower_is_better: as a loss.
    """

    of: Callable[[Targets, Probabilities], float]
    definition: str
    source: str
    lower_is_better: bool = False


class ClassMetric(NamedTuple):
    """A metric of one class against the rest.

    Attributes:
        of: (is this class (n,), predicted as this class (n,), its probability (n,)) -> value.
        definition: in a sentence.
        source: of the definition.
    """

    of: Callable[[Flags, Flags, Probabilities], float]
    definition: str
    source: str


def _macro(average: Callable[..., float]) -> Callable[[Targets, Probabilities], float]:
    return lambda y, p: float(average(y, p.argmax(1), labels=range(p.shape[1]), average="macro", zero_division=0))


def _mean_over_classes(of: Callable[[Flags, Probabilities], float]) -> Callable[[Targets, Probabilities], float]:
    return lambda y, p: float(np.mean([of(y == c, p[:, c]) for c in range(p.shape[1])]))


def _auc(is_class: Flags, probability: Probabilities) -> float:
    return float(sk.roc_auc_score(is_class, probability)) if 0 < is_class.sum() < len(is_class) else float("nan")


def _average_precision(is_class: Flags, probability: Probabilities) -> float:
    return float(sk.average_precision_score(is_class, probability)) if is_class.any() else float("nan")


def _specificity(is_class: Flags, chosen: Flags) -> float:
    return float(sk.recall_score(~is_class, ~chosen, zero_division=0))


def calibration_bins(probabilities: Probabilities) -> NDArray[np.int64]:
    """Which bin of equal width the highest probability of each image falls into: (n, classes) -> (n,)."""
    bins: NDArray[np.int64] = np.minimum(
        (probabilities.max(1) * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1
    )
    return bins


def _calibration_error(targets: Targets, probabilities: Probabilities) -> float:
    # torchmetrics gives a probability of exactly 1 a bin of its own (its issue 3510); it is the oracle of the test.
    surplus = probabilities.max(1) - (probabilities.argmax(1) == targets)
    return float(np.abs(np.bincount(calibration_bins(probabilities), surplus)).sum() / len(targets))


HAND_TILL = "Hand and Till, Machine Learning 45, 2001, discuss the alternatives"
SOKOLOVA = "Sokolova and Lapalme, Information Processing & Management 45, 2009"

METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        lambda y, p: float(sk.accuracy_score(y, p.argmax(1))), "share of images predicted right", SOKOLOVA
    ),
    "balanced_accuracy": Metric(
        _macro(sk.recall_score), "mean over classes of the share predicted right",
        "Brodersen et al., ICPR 2010",
    ),
    "macro_precision": Metric(_macro(sk.precision_score), "mean over classes of the precision", SOKOLOVA),
    "macro_recall": Metric(_macro(sk.recall_score), "mean over classes of the recall", SOKOLOVA),
    "macro_f1": Metric(_macro(sk.f1_score), "mean over classes of F1", SOKOLOVA),
    "macro_specificity": Metric(
        lambda y, p: float(np.mean([_specificity(y == c, p.argmax(1) == c) for c in range(p.shape[1])])),
        "mean over classes of the specificity", SOKOLOVA,
    ),
    "mcc": Metric(
        lambda y, p: float(sk.matthews_corrcoef(y, p.argmax(1))),
        "correlation of true and predicted class, for several classes", "Gorodkin, Comput Biol Chem 28, 2004",
    ),
    "kappa": Metric(
        lambda y, p: float(sk.cohen_kappa_score(y, p.argmax(1), labels=list(range(p.shape[1])))),
        "agreement of true and predicted class beyond chance", "Cohen, Educ Psychol Meas 20, 1960",
    ),
    "macro_auc": Metric(
        _mean_over_classes(_auc), "mean over classes of the area under the ROC curve, one class against the rest",
        HAND_TILL,
    ),
    "macro_average_precision": Metric(
        _mean_over_classes(_average_precision), "mean over classes of the average precision",
        "Saito and Rehmsmeier, PLoS ONE 10, 2015",
    ),
    "log_loss": Metric(
        lambda y, p: float(sk.log_loss(y, p, labels=list(range(p.shape[1])))),
        "mean of -log of the true class's probability", "Good, J R Stat Soc B 14, 1952", lower_is_better=True,
    ),
    "brier": Metric(
        lambda y, p: float(sk.brier_score_loss(y, p, labels=list(range(p.shape[1])), scale_by_half=False)),
        "mean squared distance of the probabilities from 1 for the true class and 0 for the others, 0 to 2",
        "Brier, Mon Weather Rev 78, 1950", lower_is_better=True,
    ),
    "ece": Metric(
        _calibration_error,
        f"expected calibration error: mean gap between the highest probability and how often it is right, over "
        f"{CALIBRATION_BINS} bins of equal width; of few images it is too high even for a perfect model",
        "Guo et al., ICML 2017", lower_is_better=True,
    ),
}  # fmt: skip

TITLES = {
    "macro_f1": "macro-F1", "mcc": "Matthews correlation", "kappa": "Cohen's kappa",
    "macro_auc": "AUC, mean of classes",
    "macro_average_precision": "average precision, mean of classes", "brier": "Brier score",
    "ece": "expected calibration error", "f1": "F1", "auc": "AUC",
    "operating_sensitivity": "sensitivity at the operating point",
    "operating_specificity": "specificity at the operating point",
    "operating_positive_predictive_value": "positive predictive value there",
    "operating_negative_predictive_value": "negative predictive value there",
    "answered_accuracy": "accuracy where it answers",
}  # fmt: skip


def title(name: str) -> str:
    """A metric's name as people read it."""
    return TITLES.get(name) or name.replace("_", " ")


CLASS_METRICS: dict[str, ClassMetric] = {
    "precision": ClassMetric(
        lambda y, chosen, p: float(sk.precision_score(y, chosen, zero_division=0)),
        "share of the images called so that are so", SOKOLOVA,
    ),
    "recall": ClassMetric(
        lambda y, chosen, p: float(sk.recall_score(y, chosen, zero_division=0)),
        "share of the class's images that are called so; of malignant, the sensitivity", SOKOLOVA,
    ),
    "specificity": ClassMetric(
        lambda y, chosen, p: _specificity(y, chosen), "share of the other images that are not called so", SOKOLOVA
    ),
    "f1": ClassMetric(
        lambda y, chosen, p: float(sk.f1_score(y, chosen, zero_division=0)),
        "harmonic mean of precision and recall", SOKOLOVA,
    ),
    "auc": ClassMetric(
        lambda y, chosen, p: _auc(y, p), "area under the ROC curve against the rest",
        "Hanley and McNeil, Radiology 143, 1982",
    ),
    "average_precision": ClassMetric(
        lambda y, chosen, p: _average_precision(y, p), "area under the precision-recall steps, not interpolated",
        "Saito and Rehmsmeier, PLoS ONE 10, 2015",
    ),
}  # fmt: skip


def score(targets: Targets, probabilities: Probabilities, labels: Sequence[str]) -> dict[str, float]:
    """All metrics, those of single classes under names such as `recall_malignant`.

    Args:
        targets: (n,) class numbers.
        probabilities: (n, classes), rows sum to 1.
        labels: class names in the order of the columns.

    Returns:
        name -> value; a metric that is undefined on these images (an AUC where a class is absent) is NaN.
    """
    values = {name: metric.of(targets, probabilities) for name, metric in METRICS.items()}
    predicted = probabilities.argmax(1)
    for number, label in enumerate(labels):
        for name, metric in CLASS_METRICS.items():
            values[f"{name}_{label}"] = metric.of(targets == number, predicted == number, probabilities[:, number])
    return values


def epoch_score(targets: Targets, probabilities: Probabilities) -> dict[str, float]:
    """The two metrics that are followed through training."""
    return {name: METRICS[name].of(targets, probabilities) for name in ("accuracy", "macro_f1")}


def confusion(targets: Targets, probabilities: Probabilities) -> NDArray[np.int64]:
    """Confusion matrix: (classes, classes) counts, true classes in rows."""
    return np.asarray(sk.confusion_matrix(targets, probabilities.argmax(1), labels=range(probabilities.shape[1])))
