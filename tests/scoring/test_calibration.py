import numpy as np
import pytest
from crepes import ConformalClassifier
from crepes.extras import hinge
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from ultrasound.inference.calibration import Calibration
from ultrasound.scoring import calibration, figures, metrics


def answers(count, seed, temperature=1.0):
    """Class numbers that follow the probabilities, and these probabilities at another temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, 3))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = (rng.random(count)[:, None] > true.cumsum(1)).sum(1).clip(0, 2)
    said = np.exp(logits / temperature)
    return targets, said / said.sum(1, keepdims=True)


def at(temperature):
    return Calibration(temperature, "malignant", 0.5, (0.1, 0.1, 0.1), 0.95, 0.9, 10, "of a test")


class Says(ClassifierMixin, BaseEstimator):
    classes_ = np.arange(3)

    def __sklearn_is_fitted__(self):
        return True

    def fit(self, logits, targets):
        return self

    def decision_function(self, logits):
        return logits

    def predict(self, logits):
        return logits.argmax(1)


@pytest.mark.parametrize("said_at", [0.4, 1.0, 2.5])
def test_the_temperature_is_that_of_scikit_learn(said_at):
    targets, probabilities = answers(400, 0, said_at)
    theirs = CalibratedClassifierCV(FrozenEstimator(Says()), method="temperature", ensemble=False)
    theirs.fit(np.log(probabilities), targets)
    found = calibration.temperature(probabilities, targets)
    np.testing.assert_allclose(
        at(found).probabilities(probabilities), theirs.predict_proba(np.log(probabilities)), atol=1e-4
    )
    assert found == pytest.approx(1 / said_at, rel=0.25)


@pytest.mark.parametrize("said_at", [0.4, 0.6, 1.8, 3.0])
def test_the_temperature_lowers_the_loss_on_images_held_out_and_keeps_every_predicted_class(said_at):
    loss, lower = metrics.METRICS["log_loss"].of, []
    for seed in range(20):
        targets, probabilities = answers(600, seed, said_at)
        found = at(calibration.temperature(probabilities[:400], targets[:400]))
        held_out, after = probabilities[400:], found.probabilities(probabilities[400:])
        lower.append(loss(targets[400:], after) < loss(targets[400:], held_out))
        assert (after.argmax(1) == held_out.argmax(1)).all()
        np.testing.assert_allclose(after.sum(1), 1)
    assert np.mean(lower) >= 0.9


def test_certain_and_impossible_answers_stay_finite():
    after = at(2.0).probabilities(np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]))
    assert np.isfinite(after).all() and after[0, 0] > 0.99
    assert np.isfinite(calibration.temperature(np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 2, 1])))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.floats(0.05, 1.0), st.integers(1, 3))
def test_no_threshold_has_the_sensitivity_and_more_specificity(seed, count, sensitivity, decimals):
    rng = np.random.default_rng(seed)
    probability, is_positive = rng.random(count).round(decimals), rng.random(count) < 0.4
    is_positive[0], is_positive[1] = True, False
    found = calibration.operating_point(probability, is_positive, sensitivity)

    def both(threshold):
        called = probability >= threshold
        return np.mean(called[is_positive]), np.mean(~called[~is_positive])

    reached, specificity = both(found)
    assert reached >= sensitivity - 1e-9
    best = max(both(t)[1] for t in np.unique(probability) if both(t)[0] >= sensitivity - 1e-9)
    assert specificity == pytest.approx(best)
    assert both(found - 1e-6) == both(found) == both(found + 1e-6) or found == 0


def test_prediction_sets_are_those_of_crepes_class_by_class():
    targets, probabilities = answers(300, 3)
    new = answers(200, 4)[1]
    thresholds = calibration.set_thresholds(probabilities, targets, 0.9)
    theirs = ConformalClassifier().fit(hinge(probabilities, np.arange(3), targets), bins=targets)
    p = [theirs.predict_p(hinge(new), bins=np.full(len(new), c), smoothing=False)[:, c] for c in range(3)]
    assert ((new >= thresholds) == (np.stack(p, axis=1) > 0.1)).all()


def test_prediction_sets_hold_each_class_as_often_as_they_promise():
    covered = []
    for seed in range(200):
        targets, probabilities = answers(500, seed)
        thresholds = calibration.set_thresholds(probabilities[:250], targets[:250], 0.9)
        inside = probabilities[250:] >= thresholds
        covered.append([inside[targets[250:] == c, c].mean() for c in range(3)])
    assert (np.mean(covered, axis=0) > 0.895).all() and (np.mean(covered, axis=0) < 0.93).all()


def test_a_class_with_too_few_images_is_in_every_set():
    targets, probabilities = answers(60, 0)
    targets[:] = 0
    targets[:8] = 1  # 9 would do for 0.9
    assert calibration.set_thresholds(probabilities, targets, 0.9)[1:] == (0.0, 0.0)


def test_reliability_lies_on_the_diagonal_for_a_calibrated_model_and_is_drawn():
    targets, probabilities = answers(20_000, 0)
    good = calibration.reliability(probabilities, targets)
    assert good["images"].tolist() == [2000] * 10
    assert np.abs(good["confidence"] - good["accuracy"]).max() < 0.04
    bad = calibration.reliability(answers(20_000, 0, 0.4)[1], targets)
    assert (bad["confidence"] - bad["accuracy"]).iloc[2:7].min() > 0.05
    figure = figures.reliability({"before": bad, "after": good}, "images")
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines[1:]] == [bad["accuracy"].tolist(),
                                                                                good["accuracy"].tolist()]  # fmt: skip


def test_net_benefit_by_hand():
    probability = np.array([0.9, 0.6, 0.4, 0.1])
    is_positive = np.array([True, False, True, False])
    curve = calibration.decision_curve(probability, is_positive, np.array([0.2, 0.5])).set_index("threshold")
    assert curve.loc[0.2].tolist() == pytest.approx([2 / 4 - 0.25 * 1 / 4, 0.5 - 0.25 * 0.5, 0])
    assert curve.loc[0.5].tolist() == pytest.approx([1 / 4 - 1 / 4, 0.5 - 0.5, 0])
