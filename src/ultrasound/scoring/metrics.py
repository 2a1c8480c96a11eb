"""The table of metrics: name -> function of class numbers and probabilities. A new metric is a new line.

Sources: scikit-learn's definitions (Pedregosa et al., JMLR 12, 2011); ROC AUC one against the rest, averaged over
classes without weights (Hand and Till, Machine Learning 45, 2001, discuss the alternatives).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

Targets = NDArray[np.int64]
Probabilities = NDArray[np.float64]


def _macro(average: Callable[..., float]) -> Callable[[Targets, Probabilities], float]:
    return lambda y, p: float(average(y, p.argmax(1), labels=range(p.shape[1]), average="macro", zero_division=0))


# Of the whole: (class numbers (n,), probabilities (n, classes)) -> value
METRICS: dict[str, Callable[[Targets, Probabilities], float]] = {
    "accuracy": lambda y, p: float(sk.accuracy_score(y, p.argmax(1))),
    "balanced_accuracy": _macro(sk.recall_score),  # = mean recall over all classes
    "macro_precision": _macro(sk.precision_score),
    "macro_recall": _macro(sk.recall_score),
    "macro_f1": _macro(sk.f1_score),
    "macro_auc": lambda y, p: float(np.mean([_auc(y == c, p[:, c]) for c in range(p.shape[1])])),
    "log_loss": lambda y, p: float(sk.log_loss(y, p, labels=list(range(p.shape[1])))),
}

LOWER_IS_BETTER = {"log_loss"}

# Of one class against the rest: (is this class (n,), predicted as this class (n,), its probability (n,)) -> value
CLASS_METRICS: dict[str, Callable[[NDArray[np.bool_], NDArray[np.bool_], Probabilities], float]] = {
    "precision": lambda y, chosen, p: float(sk.precision_score(y, chosen, zero_division=0)),
    "recall": lambda y, chosen, p: float(sk.recall_score(y, chosen, zero_division=0)),
    "f1": lambda y, chosen, p: float(sk.f1_score(y, chosen, zero_division=0)),
    "auc": lambda y, chosen, p: _auc(y, p),
}


def score(targets: Targets, probabilities: Probabilities, labels: Sequence[str]) -> dict[str, float]:
    """All metrics, those of single classes under names such as `recall_malignant`.

    Args:
        targets: (n,) class numbers.
        probabilities: (n, classes), rows sum to 1.
        labels: class names in the order of the columns.

    Returns:
        name -> value; a metric that is undefined on these images (an AUC where a class is absent) is NaN.
    """
    values = {name: metric(targets, probabilities) for name, metric in METRICS.items()}
    predicted = probabilities.argmax(1)
    for number, label in enumerate(labels):
        for name, of_class in CLASS_METRICS.items():
            values[f"{name}_{label}"] = of_class(targets == number, predicted == number, probabilities[:, number])
    return values


def epoch_score(targets: Targets, probabilities: Probabilities) -> dict[str, float]:
    """The two metrics that are followed through training."""
    return {name: METRICS[name](targets, probabilities) for name in ("accuracy", "macro_f1")}


def confusion(targets: Targets, probabilities: Probabilities) -> NDArray[np.int64]:
    """Confusion matrix: (classes, classes) counts, true classes in rows."""
    return np.asarray(sk.confusion_matrix(targets, probabilities.argmax(1), labels=range(probabilities.shape[1])))


def as_text(values: Mapping[str, float], labels: Sequence[str]) -> str:
    """The metrics as lines to print: those of the whole first, then a table of the single classes."""
    lines = [f"  {name:<18} {values[name]:.3f}" for name in METRICS]
    lines.append(" " * 13 + "".join(f"{name:>10}" for name in CLASS_METRICS))
    for label in labels:
        row = [values[f"{name}_{label}"] for name in CLASS_METRICS]
        lines.append(f"  {label:<11}" + "".join(f"{value:>10.3f}" for value in row))
    return "\n".join(lines)


def _auc(is_class: NDArray[np.bool_], probability: Probabilities) -> float:
    return float(sk.roc_auc_score(is_class, probability)) if 0 < is_class.sum() < len(is_class) else float("nan")
