"""Two models on the same images, against independent calculations."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from ultrasound.scoring import comparisons


def predictions(rng, targets, right):
    """Probabilities of three classes that are right with this probability."""
    chosen = np.where(rng.random(len(targets)) < right, targets, (targets + 1) % 3)
    return np.eye(3)[chosen] * 0.8 + 0.1


def test_the_difference_is_that_of_the_scores_and_its_sign_says_who_is_better():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 200)
    worse, better = predictions(rng, targets, 0.6), predictions(rng, targets, 0.9)
    value, low, high = comparisons.difference("macro_f1", targets, [worse], [better], np.arange(200), 500)
    expected = [f1_score(targets, found.argmax(1), average="macro") for found in (worse, better)]
    assert value == pytest.approx(expected[1] - expected[0])
    assert 0 < low < value < high
    turned = comparisons.difference("macro_f1", targets, [better], [worse], np.arange(200), 500)
    assert turned.value == pytest.approx(-value)
    same = comparisons.difference("macro_auc", targets, [better], [better], np.arange(200), 500)
    assert same == (0, 0, 0)


def test_pairing_makes_the_interval_narrower_and_groups_make_it_wider():
    rng = np.random.default_rng(1)
    targets = np.repeat(rng.integers(0, 3, 60), 5)
    first = predictions(rng, targets, 0.7)
    second = first.copy()
    changed = np.repeat(rng.random(60) < 0.2, 5)  # whole groups change together
    second[changed] = np.eye(3)[targets[changed]]

    def width(one, other, groups):
        _, low, high = comparisons.difference("accuracy", targets, [one], [other], groups, 1000)
        return high - low

    groups = np.repeat(np.arange(60), 5)
    other = predictions(rng, targets, 0.78)  # as good, but with errors of its own
    assert width(first, second, np.arange(300)) < width(first, other, np.arange(300))
    assert width(first, second, groups) > 1.2 * width(first, second, np.arange(300))


def test_repetitions_are_averaged():
    rng = np.random.default_rng(2)
    targets = rng.integers(0, 3, 100)
    first, second, third = (predictions(rng, targets, right) for right in (0.5, 0.7, 0.9))
    scores = [f1_score(targets, found.argmax(1), average="macro") for found in (first, second, third)]
    value, _, _ = comparisons.difference("macro_f1", targets, [first], [second, third], np.arange(100), 50)
    assert value == pytest.approx((scores[1] + scores[2]) / 2 - scores[0])


def test_mcnemar_is_the_binomial_test_of_what_only_one_has_right():
    targets = np.zeros(30, dtype=np.int64)
    right, wrong = np.array([0.8, 0.1, 0.1]), np.array([0.1, 0.8, 0.1])
    first = np.array([right] * 20 + [wrong] * 10)
    second = np.array([right] * 18 + [wrong] * 2 + [right] * 9 + [wrong] * 1)
    assert comparisons.mcnemar(targets, first, second) == pytest.approx(stats.binomtest(2, 11).pvalue)
    assert comparisons.mcnemar(targets, first, second) == comparisons.mcnemar(targets, second, first)
    assert comparisons.mcnemar(targets, first, first) == 1
