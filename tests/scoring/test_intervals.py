import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from ultrasound.scoring import figures, intervals, metrics

RESAMPLES = 400


def predictions(count, seed, decimals=2):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, count)
    probabilities = rng.dirichlet([1, 1, 1], count).round(decimals)  # rounded: ties happen
    return targets, probabilities


def by_scikit_learn(targets, probabilities, weights):
    predicted = probabilities.argmax(1)
    seen = set(targets[weights > 0])
    auc = np.nan
    if seen == {0, 1, 2}:
        auc = np.mean([sk.roc_auc_score(targets == c, probabilities[:, c], sample_weight=weights) for c in range(3)])
    return {
        "accuracy": sk.accuracy_score(targets, predicted, sample_weight=weights),
        "balanced_accuracy": sk.recall_score(
            targets, predicted, sample_weight=weights, average="macro", labels=range(3), zero_division=0
        ),
        "macro_f1": sk.f1_score(
            targets, predicted, sample_weight=weights, average="macro", labels=range(3), zero_division=0
        ),
        "macro_auc": auc,
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 60), st.integers(0, 10_000), st.integers(1, 3))
def test_weighted_metrics_are_those_of_scikit_learn_with_ties_and_weights_of_zero(count, seed, decimals):
    targets, probabilities = predictions(count, seed, decimals)
    weights = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=3).astype(float)
    for name, metric in intervals.WEIGHTED.items():
        found = metric(targets, probabilities, weights)
        expected = [by_scikit_learn(targets, probabilities, row)[name] for row in weights]
        np.testing.assert_allclose(found, expected, err_msg=name)


def test_weights_of_one_give_the_metrics_of_the_table():
    targets, probabilities = predictions(80, 0)
    for name, metric in intervals.WEIGHTED.items():
        expected = metrics.METRICS[name](targets, probabilities)
        assert metric(targets, probabilities, np.ones((1, 80)))[0] == pytest.approx(expected), name


def test_groups_are_drawn_whole_and_as_many_as_there_are():
    groups = np.array([7, 7, 7, 2, 2, 9])
    rows = []
    intervals.bootstrap({"seen": lambda weights: rows.append(weights) or weights[:, 0]}, groups, 1200, 0)
    weights = np.concatenate(rows)
    assert weights.shape == (1201, 6)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, [0, 3, 5]].sum(axis=1) == 3).all()
    np.testing.assert_allclose(weights[1:, [0, 3, 5]].mean(axis=0), 1, atol=0.1)


def test_same_seed_same_interval_and_another_seed_another():
    targets, probabilities = predictions(60, 1)
    statistics = {"f1": intervals.mean_of("macro_f1", targets, [probabilities])}

    def found(seed):
        return intervals.interval(intervals.bootstrap(statistics, np.arange(60) // 2, RESAMPLES, seed)["f1"])

    assert found(0) == found(0)
    assert found(0) != found(1)
    assert found(0).low < found(0).value < found(0).high


def test_several_repetitions_count_by_their_mean_and_differences_are_paired():
    targets, first = predictions(60, 1)
    second = first[:, [1, 2, 0]]
    both = {
        "first": intervals.mean_of("accuracy", targets, [first]),
        "mean": intervals.mean_of("accuracy", targets, [first, second]),
        "second": intervals.mean_of("accuracy", targets, [second]),
        "again": intervals.mean_of("accuracy", targets, [first]),
    }
    drawn = intervals.bootstrap(both, np.arange(60), RESAMPLES, 0)
    np.testing.assert_allclose(drawn["mean"], (drawn["first"] + drawn["second"]) / 2)
    assert intervals.interval(drawn["first"] - drawn["again"]) == (0, 0, 0)


def test_a_metric_that_is_undefined_has_an_undefined_interval():
    targets, probabilities = np.zeros(20, dtype=np.int64), predictions(20, 0)[1]
    drawn = intervals.bootstrap({"auc": intervals.mean_of("macro_auc", targets, [probabilities])}, range(20), 100, 0)
    assert np.isnan(intervals.interval(drawn["auc"])).all()


def test_groups_cover_the_truth_where_single_images_are_too_certain():
    """60 groups of 4 copies each, right with probability 0.7: 95 % intervals must hold 0.7 about 95 times of 100."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 4)
    covered = {"groups": 0, "images": 0}
    for trial in range(300):
        right = (rng.random(60) < 0.7)[groups]
        statistic = {"share": lambda weights, right=right: weights @ right / weights.sum(axis=1)}
        for name, drawn_by in (("groups", groups), ("images", np.arange(240))):
            found = intervals.interval(intervals.bootstrap(statistic, drawn_by, RESAMPLES, trial)["share"])
            covered[name] += found.low <= 0.7 <= found.high
    assert 0.90 < covered["groups"] / 300 < 0.99
    assert covered["images"] / 300 < 0.75


def test_the_intervals_of_a_comparison_take_seconds():
    targets, _ = predictions(780, 0)
    found = {protocol: [predictions(780, seed, 9)[1] for seed in range(3)] for protocol in ("random", "grouped")}
    statistics = {
        f"{protocol}/{name}": intervals.mean_of(name, targets, repetitions)
        for protocol, repetitions in found.items() for name in intervals.WEIGHTED
    }  # fmt: skip
    started = time.process_time()
    drawn = intervals.bootstrap(statistics, np.arange(780) // 2, 2000, 0)
    assert {values.shape for values in drawn.values()} == {(2001,)}
    assert time.process_time() - started < 20


def test_the_figure_shows_values_intervals_and_repetitions():
    scores = {"random": {"accuracy": intervals.Interval(0.8, 0.7, 0.85)},
              "grouped": {"accuracy": intervals.Interval(0.7, 0.6, 0.75)}}  # fmt: skip
    repetitions = {"random": {"accuracy": [0.79, 0.81]}, "grouped": {"accuracy": [0.69, 0.71]}}
    figure = figures.comparison(scores, repetitions, {"accuracy": intervals.Interval(0.1, 0.05, 0.15)}, "title")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["random", "grouped"]
    assert "+0.100" in axes.get_title() and "+0.050 to +0.150" in axes.get_title()
    drawn = [np.round(line.get_ydata(orig=False), 6).tolist() for line in axes.lines]
    assert [0.79, 0.81] in drawn and [0.69, 0.71] in drawn and [0.8] in drawn
    bars = [segment[:, 1].round(6).tolist() for found in axes.collections for segment in found.get_segments()]
    assert bars == [[0.7, 0.85], [0.6, 0.75]]
