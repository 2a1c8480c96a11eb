import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from ultrasound.scoring import figures, metrics

LABELS = ("benign", "malignant", "normal")


def average_precision(is_class, probability):
    if not is_class.any():
        return float("nan")
    points = [
        (np.mean(is_class[probability >= t]), np.mean(probability[is_class] >= t)) for t in np.unique(probability)
    ]
    precision, recall = np.array([*points, (1.0, 0.0)]).T  # from the lowest threshold on
    return float(np.sum(precision[:-1] * -np.diff(recall)))


def correlation(targets, predicted):
    """Of the classes as vectors of 0 and 1: covariance over the root of both variances."""
    true, called = np.eye(3)[targets], np.eye(3)[predicted]
    true, called = true - true.mean(0), called - called.mean(0)
    spread = np.sqrt((true**2).sum() * (called**2).sum())
    return (true * called).sum() / spread if spread > 1e-12 else 0.0


def by_hand(targets, probabilities):
    """Independent of scikit-learn: counts, pairs and thresholds."""
    predicted = probabilities.argmax(1)
    values = {"accuracy": float(np.mean(predicted == targets)), "mcc": correlation(targets, predicted)}
    recalls, precisions, f1s = [], [], []
    by_chance = sum(np.mean(targets == c) * np.mean(predicted == c) for c in range(3))
    values["kappa"] = (values["accuracy"] - by_chance) / (1 - by_chance) if by_chance < 1 else float("nan")
    values["brier"] = np.mean([sum((p - (c == y)) ** 2 for c, p in enumerate(row))
                               for y, row in zip(targets, probabilities, strict=True)])  # fmt: skip
    values["ece"] = float(multiclass_calibration_error(
        torch.from_numpy(probabilities.clip(0, 1 - 1e-6)), torch.from_numpy(targets), 3, n_bins=15
    ))  # fmt: skip
    for c, label in enumerate(LABELS):
        tp = np.sum((predicted == c) & (targets == c))
        recall = tp / max(np.sum(targets == c), 1)
        precision = tp / max(np.sum(predicted == c), 1)
        f1 = 0.0 if tp == 0 else 2 * precision * recall / (precision + recall)
        positive, negative = probabilities[targets == c, c], probabilities[targets != c, c]
        pairs = positive[:, None] - negative[None]
        auc = float(np.mean((pairs > 0) + 0.5 * (pairs == 0))) if pairs.size else float("nan")
        values |= {f"recall_{label}": recall, f"precision_{label}": precision, f"f1_{label}": f1, f"auc_{label}": auc}
        values[f"specificity_{label}"] = np.sum((predicted != c) & (targets != c)) / max(np.sum(targets != c), 1)
        values[f"average_precision_{label}"] = average_precision(targets == c, probabilities[:, c])
        recalls.append(recall)
        precisions.append(precision)
        f1s.append(f1)
    values |= {
        "macro_recall": np.mean(recalls), "balanced_accuracy": np.mean(recalls),
        "macro_precision": np.mean(precisions), "macro_f1": np.mean(f1s),
        "macro_auc": np.mean([values[f"auc_{label}"] for label in LABELS]),
        "macro_specificity": np.mean([values[f"specificity_{label}"] for label in LABELS]),
        "macro_average_precision": np.mean([values[f"average_precision_{label}"] for label in LABELS]),
        "log_loss": -np.mean(np.log(probabilities[np.arange(len(targets)), targets])),
    }  # fmt: skip
    return values


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 60), st.integers(0, 10_000))
def test_every_metric_agrees_with_an_independent_calculation(count, seed):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, count)
    probabilities = rng.dirichlet([1, 1, 1], count).round(2) + 0.01  # rounded: ties happen
    probabilities /= probabilities.sum(1, keepdims=True)
    assume(np.abs(probabilities.max(1) * 15 % 1 - 0.5).max() < 0.499)  # torchmetrics bins in single precision
    values = metrics.score(targets, probabilities, LABELS)
    expected = by_hand(targets, probabilities)
    assert set(values) == set(expected)
    for name, value in values.items():
        assert value == pytest.approx(expected[name], nan_ok=True, abs=1e-6), name


def test_a_certain_answer_falls_into_the_last_bin_of_the_calibration_error():
    probabilities = np.array([[1.0, 0.0, 0.0], [0.97, 0.03, 0.0]])
    assert metrics.METRICS["ece"].of(np.array([0, 1]), probabilities) == pytest.approx(abs(1.97 - 1) / 2)


def test_every_metric_says_what_it_is_and_where_it_comes_from():
    for table in (metrics.METRICS, metrics.CLASS_METRICS):
        assert all(len(metric.definition) > 10 and metric.source for metric in table.values())
    assert {name for name, metric in metrics.METRICS.items() if metric.lower_is_better} == {"log_loss", "brier", "ece"}


def test_confusion_has_true_classes_in_rows_and_absent_classes_too():
    targets = np.array([0, 0, 1])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1]])
    assert metrics.confusion(targets, probabilities).tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_figures_show_what_they_are_given():
    figure = figures.confusion_matrix(np.array([[3, 1], [0, 0]]), ["benign", "malignant"], "here")
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {"3\n75%", "1\n25%", "0\n0%"}
    curves = figures.learning_curves([({"loss": 2.0}, {"loss": 3.0}), ({"loss": 1.0}, {"loss": 2.0})], 2)
    assert [line.get_ydata().tolist() for line in curves.axes[0].lines[:2]] == [[2.0, 1.0], [3.0, 2.0]]
