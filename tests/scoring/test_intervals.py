import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ultrasound.scoring import figures, intervals, metrics, weighted

RESAMPLES = 400
LABELS = ("benign", "malignant", "normal")


def predictions(count, seed, decimals=2):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, count)
    probabilities = rng.dirichlet([1, 1, 1], count).round(decimals)  # rounded: ties happen
    return targets, probabilities


def copies(targets, probabilities, weights):
    """Each image as often as it was drawn."""
    rows = np.repeat(np.arange(len(targets)), weights.astype(int))
    return targets[rows], probabilities[rows]


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 60), st.integers(0, 10_000), st.integers(1, 3))
def test_weights_are_worth_copies_of_the_images_with_ties_and_absent_classes(count, seed, decimals):
    targets, probabilities = predictions(count, seed, decimals)
    probabilities = (probabilities + 1e-3) / (probabilities + 1e-3).sum(axis=1, keepdims=True)
    weights = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=3).astype(float)
    statistics = intervals.all_of(targets, probabilities, LABELS)
    expected = [metrics.score(*copies(targets, probabilities, row), LABELS) for row in weights]
    assert list(statistics) == list(expected[0])
    for name, statistic in statistics.items():
        found, values = statistic(weights), np.array([row[name] for row in expected])
        if isinstance(statistic, intervals.Share):  # of no image, where scikit-learn says 0
            values = np.where(np.isnan(found), np.nan, values)
        np.testing.assert_allclose(found, values, atol=1e-9, err_msg=name)


def test_a_share_among_images_that_were_not_drawn_is_undefined():
    flags, among = np.array([True, False, True, True]), np.array([True, True, False, False])
    weights = np.array([[1.0, 1, 1, 1], [3, 1, 0, 0], [0, 0, 2, 2]])
    np.testing.assert_allclose(weighted.share(flags, among, weights), [0.5, 0.75, np.nan])


def test_groups_are_drawn_whole_and_as_many_as_there_are():
    groups = np.array([7, 7, 7, 2, 2, 9])
    rows = []
    intervals.bootstrap({"seen": lambda weights: rows.append(weights) or weights[:, 0]}, groups, 1200, 0)
    weights = np.concatenate(rows)
    assert weights.shape == (1 + 3 + 1200, 6)
    assert (weights[0] == 1).all()
    assert (weights[1:4, [0, 3, 5]] == 1 - np.eye(3)[[1, 0, 2]]).all()
    weights = weights[4:]
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, [0, 3, 5]].sum(axis=1) == 3).all()
    np.testing.assert_allclose(weights[:, [0, 3, 5]].mean(axis=0), 1, atol=0.1)


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
    expected = (drawn["first"].resamples + drawn["second"].resamples) / 2
    np.testing.assert_allclose(drawn["mean"].resamples, expected)
    assert intervals.interval(drawn["first"] - drawn["again"]) == (0, 0, 0)


def test_a_metric_that_is_undefined_has_an_undefined_interval():
    targets, probabilities = np.zeros(20, dtype=np.int64), predictions(20, 0)[1]
    drawn = intervals.bootstrap({"auc": intervals.mean_of("macro_auc", targets, [probabilities])}, range(20), 100, 0)
    assert np.isnan(intervals.interval(drawn["auc"])).all()


def scans(count, rng):
    """Lesions of three classes as BUSI has them, one to three near-copies each: a model errs on whole groups."""
    confusable = np.array([[4.0, 1.2, 0.8], [1.0, 3.0, 0.5], [0.8, 0.6, 3.0]])
    sizes, target = rng.choice([1, 1, 1, 2, 3], count), rng.choice(3, count, p=[0.55, 0.27, 0.18])
    answer = np.empty((count, 3))
    for number, weights in enumerate(confusable):
        answer[target == number] = rng.dirichlet(weights, np.sum(target == number))
    group = np.repeat(np.arange(count), sizes)
    return target[group], 0.9 * answer[group] + 0.1 * rng.dirichlet([1, 1, 1], len(group)), group


def test_groups_cover_the_truth_where_single_images_are_too_certain():
    """Of 500 test sets of 112 groups, as many as BUSI's has; the truth of a metric is its value on 60,000 groups.

    Of the malignant images alone there are some 32 groups, and an AUC near 1 is skewed: their intervals are too narrow.
    """
    expected = {
        "accuracy": (0.93, 0.97),
        "macro_f1": (0.93, 0.97),
        "recall_malignant": (0.9, 0.97),
        "macro_auc": (0.9, 0.97),
    }
    rng = np.random.default_rng(1)
    targets, answers, _ = scans(60_000, rng)
    truth = metrics.score(targets, answers, LABELS)
    covered = dict.fromkeys(((name, by) for name in expected for by in ("groups", "images", "percentiles")), 0)
    for trial in range(500):
        targets, answers, group = scans(112, rng)
        every = intervals.all_of(targets, answers, LABELS)
        for by, units, resamples in (("groups", group, 1000), ("images", np.arange(len(group)), 200)):
            found = intervals.bootstrap({name: every[name] for name in expected}, units, resamples, trial)
            for name in expected:
                _, low, high = intervals.interval(found[name])
                covered[name, by] += low <= truth[name] <= high
                if by == "groups":
                    low, high = np.nanpercentile(found[name].resamples, [2.5, 97.5])
                    covered[name, "percentiles"] += low <= truth[name] <= high
    shares = {f"{name} by {by}": count / 500 for (name, by), count in covered.items()}
    print(shares)
    for name, (least, most) in expected.items():
        assert least <= shares[f"{name} by groups"] <= most, shares
        assert shares[f"{name} by images"] < 0.9, shares


def test_a_share_of_all_or_none_has_the_exact_interval_of_its_groups():
    groups, right = np.repeat(np.arange(20), 3), np.ones(60, dtype=bool)
    among = groups < 15
    drawn = intervals.bootstrap({"all": intervals.Share(right, among), "none": intervals.Share(~right, among)},
                                groups, RESAMPLES, 0)  # fmt: skip
    least = 0.025 ** (1 / 15)  # p to the 15th is 2.5 %
    assert intervals.interval(drawn["all"]) == pytest.approx((1, least, 1))
    assert intervals.interval(drawn["none"]) == pytest.approx((0, 0, 1 - least))


def test_the_interval_is_that_of_scipy_where_groups_are_single_images():
    rng = np.random.default_rng(0)
    values = rng.exponential(1, 80)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=rng).confidence_interval
    drawn = intervals.bootstrap({"mean": lambda weights: weighted.mean(values, weights)}, np.arange(80), 20_000, 0)
    found = intervals.interval(drawn["mean"])
    assert found == pytest.approx((values.mean(), theirs.low, theirs.high), abs=0.01)
    plain = np.percentile(drawn["mean"].resamples, [2.5, 97.5])
    assert found.low > plain[0] + 0.01 and found.high > plain[1] + 0.01  # the mean of a skewed law


def test_the_intervals_of_a_comparison_take_seconds():
    targets, _ = predictions(780, 0)
    found = {protocol: [predictions(780, seed, 9)[1] for seed in range(3)] for protocol in ("random", "grouped")}
    statistics = {
        f"{protocol}/{name}": intervals.mean_of(name, targets, repetitions)
        for protocol, repetitions in found.items() for name in weighted.METRICS
    }  # fmt: skip
    started = time.process_time()
    drawn = intervals.bootstrap(statistics, np.arange(780) // 2, 2000, 0)
    assert {found.resamples.shape for found in drawn.values()} == {(2000,)}
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
