"""Metrics of outlines against independent implementations, and their conventions."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from ultrasound.scoring import outlines


def masks(seed, count=2, size=24):
    """Blobs of several pixels, now and then none."""
    rng = np.random.default_rng(seed)
    found = np.zeros((count, size, size), bool)
    for mask in found:
        for _ in range(rng.integers(0, 3)):
            y, x = rng.integers(0, size - 4, 2)
            mask[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = True
    return found


def edge(mask):
    """Pixels of a mask with a neighbour above, below or beside them outside of it, by their places."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~inner)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6))
def test_every_metric_agrees_with_an_independent_implementation(seed):
    truth, found = masks(seed)
    got = outlines.per_image(truth, found)
    flat = truth.ravel(), found.ravel()
    if truth.any() or found.any():
        assert got["dice"] == pytest.approx(f1_score(*flat, zero_division=0))
        assert got["iou"] == pytest.approx(jaccard_score(*flat, zero_division=0))
    assert got["sensitivity"] == pytest.approx(recall_score(*flat, zero_division=np.nan), nan_ok=True)
    assert got["precision"] == pytest.approx(precision_score(*flat, zero_division=np.nan), nan_ok=True)
    if truth.any() and found.any():
        away = cdist(edge(truth), edge(found))
        expected = max(np.percentile(away.min(1), 95), np.percentile(away.min(0), 95))
        assert got["hd95"] == pytest.approx(expected)
        assert got["hd95_relative"] == pytest.approx(expected / (2 * np.sqrt(truth.sum() / np.pi)))


def test_a_mask_that_touches_the_border_has_its_edge_there():
    truth, found = np.zeros((2, 20, 20), bool)
    truth[:10], found[:6] = True, True
    assert outlines.per_image(truth, found)["hd95"] == 4


def test_empty_masks_as_they_are_stated():
    none, some = np.zeros((8, 8), bool), np.eye(8, dtype=bool)
    of = {
        (a, b): outlines.per_image(*pair) for (a, b), pair in
        {("none", "none"): (none, none), ("none", "some"): (none, some), ("some", "none"): (some, none)}.items()
    }  # fmt: skip
    assert of["none", "none"]["dice"] == of["none", "none"]["iou"] == 1
    for pair in (("none", "some"), ("some", "none")):
        assert of[pair]["dice"] == of[pair]["iou"] == 0
    assert np.isnan([of[pair]["hd95"] for pair in of]).all()
    assert np.isnan([of["none", "none"]["sensitivity"], of["none", "some"]["sensitivity"]]).all()
    assert of["some", "none"]["sensitivity"] == 0 == of["none", "some"]["precision"]
    assert np.isnan([of["none", "none"]["precision"], of["some", "none"]["precision"]]).all()


def table():
    truths, founds = masks(1, 60), masks(2, 60)
    return outlines.table(truths, founds), truths, founds


def test_means_are_over_the_images_that_they_name_and_intervals_hold_them():
    rows, truths, founds = table()
    lesion, found = truths.any(axis=(1, 2)), founds.any(axis=(1, 2))
    scores = outlines.scores(rows, np.arange(60), 500)
    assert scores["dice"].value == pytest.approx(rows["dice"].mean())
    assert scores["lesion_dice"].value == pytest.approx(rows["dice"][lesion].mean())
    assert scores["lesion_precision"].value == pytest.approx(rows["precision"][lesion & found].mean())
    assert scores["false_lesion_rate"].value == pytest.approx(found[~lesion].mean())
    assert scores["false_area"].value == pytest.approx(founds[~lesion].mean())
    assert scores["found_share"].value == pytest.approx(found[lesion].mean())
    assert outlines.means(rows) == pytest.approx({name: score.value for name, score in scores.items()})
    for name, (value, low, high) in scores.items():
        assert low < value < high, name


def test_a_difference_is_paired_and_its_repetitions_are_averaged():
    truths = masks(5, 40)
    worse, better = (outlines.table(truths, founds) for founds in (masks(6, 40), truths | masks(7, 40)))
    groups = np.arange(40)
    value, low, high = outlines.difference("dice", [worse], [better], groups, 500)
    assert value == pytest.approx(better["dice"].mean() - worse["dice"].mean())
    assert 0 < low < value < high
    same = outlines.difference("false_lesion_rate", [worse], [worse], groups, 500)
    assert same.value == same.low == same.high == 0
    half = outlines.difference("dice", [worse, worse], [worse, better], groups, 500)
    assert half.value == pytest.approx(value / 2)


def test_groups_are_drawn_whole():
    rows, *_ = table()
    twice = pd.concat([rows, rows], ignore_index=True)
    single, paired = (
        outlines.scores(twice, groups, 500)["dice"] for groups in (np.arange(120), np.tile(np.arange(60), 2))
    )
    assert paired.high - paired.low > 1.2 * (single.high - single.low)


def test_without_normal_images_there_is_no_false_lesion_rate():
    rows, truths, _ = table()
    scores = outlines.scores(rows[truths.any(axis=(1, 2))].reset_index(drop=True), np.arange(60)[: int(
        truths.any(axis=(1, 2)).sum())], 200)  # fmt: skip
    assert np.isnan(scores["false_lesion_rate"].value) and str(scores["false_lesion_rate"]) == "undefined"


def test_what_is_followed_during_a_training():
    truths = np.zeros((4, 8, 8), bool)
    truths[:2, 2:6, 2:6] = True
    levels = np.where(truths, 200, 20).astype(np.uint8)
    levels[1] = 0  # missed
    levels[3, 0, 0] = 128  # a false lesion
    assert outlines.epoch_score(truths, levels) == {"dice": 0.5, "lesion_dice": 0.5, "false_lesion_rate": 0.5}


def test_the_gallery_holds_the_best_the_middling_the_worst_and_false_lesions():
    rows = pd.DataFrame({
        "lesion": [1, 1, 1, 1, 1, 0, 0, 0], "found": [1, 1, 1, 0, 1, 0, 1, 1],
        "found_area": [0.1] * 6 + [0.2, 0.3], "dice": [0.5, 0.9, 0.7, 0.0, 0.8, 1.0, 0.0, 0.0],
    })  # fmt: skip
    found = outlines.gallery(rows, 2)
    assert {title: rows.tolist() for title, rows in found.items()} == {
        "best": [1, 4], "median": [4, 2], "worst": [3, 0], "false lesion": [7, 6],
    }  # fmt: skip
