import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrasound.scoring import figures, metrics

LABELS = ("benign", "malignant", "normal")


def by_hand(targets, probabilities):
    """Independent of scikit-learn: counts and pairs."""
    predicted = probabilities.argmax(1)
    values = {"accuracy": float(np.mean(predicted == targets))}
    recalls, precisions, f1s = [], [], []
    for c, label in enumerate(LABELS):
        tp = np.sum((predicted == c) & (targets == c))
        recall = tp / max(np.sum(targets == c), 1)
        precision = tp / max(np.sum(predicted == c), 1)
        f1 = 0.0 if tp == 0 else 2 * precision * recall / (precision + recall)
        positive, negative = probabilities[targets == c, c], probabilities[targets != c, c]
        pairs = positive[:, None] - negative[None]
        auc = float(np.mean((pairs > 0) + 0.5 * (pairs == 0))) if pairs.size else float("nan")
        values |= {f"recall_{label}": recall, f"precision_{label}": precision, f"f1_{label}": f1, f"auc_{label}": auc}
        recalls.append(recall)
        precisions.append(precision)
        f1s.append(f1)
    values |= {
        "macro_recall": np.mean(recalls), "balanced_accuracy": np.mean(recalls),
        "macro_precision": np.mean(precisions), "macro_f1": np.mean(f1s),
        "macro_auc": np.mean([values[f"auc_{label}"] for label in LABELS]),
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
    values = metrics.score(targets, probabilities, LABELS)
    expected = by_hand(targets, probabilities)
    assert set(values) == set(expected)
    for name, value in values.items():
        assert value == pytest.approx(expected[name], nan_ok=True), name


def test_confusion_has_true_classes_in_rows_and_absent_classes_too():
    targets = np.array([0, 0, 1])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1]])
    assert metrics.confusion(targets, probabilities).tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_text_holds_every_metric():
    rng = np.random.default_rng(0)
    values = metrics.score(np.arange(9) % 3, rng.dirichlet([1, 1, 1], 9), LABELS)
    text = metrics.as_text(values, LABELS)
    assert all(f"{value:.3f}" in text for value in values.values())


def test_figures_show_what_they_are_given():
    figure = figures.confusion_matrix(np.array([[3, 1], [0, 0]]), ["benign", "malignant"], "here")
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {"3\n75%", "1\n25%", "0\n0%"}
    curves = figures.learning_curves([({"loss": 2.0}, {"loss": 3.0}), ({"loss": 1.0}, {"loss": 2.0})], 2)
    assert [line.get_ydata().tolist() for line in curves.axes[0].lines[:2]] == [[2.0, 1.0], [3.0, 2.0]]
