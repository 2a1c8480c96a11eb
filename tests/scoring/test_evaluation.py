import numpy as np
import pandas as pd
import pytest

from ultrasound.images.slices import FEW, Slice, slices
from ultrasound.scoring import agreement, evaluation, figures, gallery
from ultrasound.scoring.evaluation import Answers

LABELS = ("benign", "malignant", "normal")


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 60)
    probabilities = rng.dirichlet([1, 1, 1], 60) + 0.5 * np.eye(3)[targets]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    sets = probabilities >= np.array([0.3, 0.5, 0.3])  # which may leave out the most probable class
    return Answers(targets, probabilities, LABELS, 1, probabilities[:, 1] >= 0.25, sets, np.arange(60) // 2)


def test_scores_of_operating_point_and_sets_by_hand(answers):
    scores = evaluation.scores(evaluation.statistics(answers), answers.groups, 200)
    positive, called = answers.targets == 1, answers.probabilities[:, 1] >= 0.25
    assert scores["operating_sensitivity"].value == np.mean(called[positive])
    assert scores["operating_specificity"].value == np.mean(~called[~positive])
    assert scores["operating_positive_predictive_value"].value == np.mean(positive[called])
    assert scores["operating_negative_predictive_value"].value == np.mean(~positive[~called])
    for number, label in enumerate(LABELS):
        assert scores[f"coverage_{label}"].value == np.mean(answers.sets[answers.targets == number, number])
    chosen = answers.probabilities.argmax(axis=1)
    single = np.array([list(np.flatnonzero(row)) == [best] for row, best in zip(answers.sets, chosen, strict=True)])
    assert scores["abstained"].value == pytest.approx(np.mean(~single))
    right = answers.probabilities.argmax(axis=1) == answers.targets
    assert scores["answered_accuracy"].value == pytest.approx(np.mean(right[single]))
    assert scores["set_size"].value == pytest.approx(answers.sets.sum() / 60)
    assert np.isnan(scores["ece"].low) and str(scores["ece"]) == f"{scores['ece'].value:.3f}"
    assert all(score.low <= score.value <= score.high for name, score in scores.items() if name != "ece")
    assert scores == evaluation.scores(evaluation.statistics(answers), answers.groups, 200)  # the same every time
    text = evaluation.as_text(scores, LABELS)
    assert f"{scores['macro_f1'].value:.3f}" in text and "sensitivity at the operating point" in text


def test_heat_maps_are_scored_on_the_images_that_have_a_lesion(answers):
    masks = np.zeros((60, 8, 8), dtype=bool)
    masks[:40, 2:5, 2:5] = True
    maps = np.zeros((60, 8, 8), dtype=np.float32)
    maps[:20, 3, 3] = 1
    maps[20:, 0, 0] = 1
    found = evaluation.statistics(answers, agreement.agreement(maps, maps, masks))
    scores = evaluation.scores(found, answers.groups, 200)
    assert scores["peak_in_lesion_all"].value == scores["heat_in_lesion_all"].value == 0.5
    assert scores["lesion_area_all"].value == pytest.approx(9 / 64)
    assert scores["centre_in_lesion_all"].value == 1
    malignant = np.flatnonzero((answers.targets == 1) & (np.arange(60) < 40))
    assert scores["peak_in_lesion_malignant"].value == pytest.approx(np.mean(malignant < 20))


def test_slices_are_scored_apart_and_small_ones_are_marked(answers):
    some = np.arange(60) < 10
    parts = [Slice("half", "first", some), Slice("half", "rest", ~some), Slice("class", "benign", answers.targets == 0)]
    table = evaluation.by_slice(answers, parts, 200)
    assert table["small"].tolist() == [True, False, (answers.targets == 0).sum() < FEW]
    assert table["images"].tolist()[:2] == [10, 50] and table["groups"].tolist()[:2] == [5, 25]
    assert table["accuracy"][0] == answers.right[:10].mean()
    assert table["sensitivity"][1] == answers.called[10:][answers.targets[10:] == 1].mean()
    benign = table.iloc[2]
    assert np.isnan(benign["sensitivity"]) and benign["specificity"] == (~answers.called[answers.targets == 0]).mean()
    words = [text.get_text() for text in figures.slices(table, "here").axes[0].get_yticklabels()]
    assert words == ["half: first (10)", "half: rest (50)", f"class: benign ({benign['images']})"]


def test_images_are_told_apart_by_flags_sizes_duplicates_and_lesions():
    catalog = pd.DataFrame({
        "label": ["benign", "benign", "malignant", "normal"], "width": [500, 800, 500, 500], "height": 500,
        "coloured": [0.0, 0.2, 0, 0], "doppler": 0, "calipers": [0, 0, 1.0, 0], "text": [0, 0, 0, 1.0], "border": 0.0,
        "lesions": [1, 1, 2, 0], "lesion_share": [0.02, 0.05, 0.2, 0.0],
    })  # fmt: skip
    found = {f"{part.by}: {part.name}": part.rows.tolist() for part in slices(catalog, np.array([0, 0, 1, 2]))}
    true, false = True, False
    assert found == {
        "calipers or text: with": [false, false, true, true], "calipers or text: without": [true, true, false, false],
        "colour: coloured": [false, true, false, false], "colour: grey": [true, false, true, true],
        "near-duplicates: has some": [true, true, false, false], "near-duplicates: single": [false, false, true, true],
        "lesion: under 4% of the image": [true, false, false, false], "lesion: 4% to 12%": [false, true, false, false],
        "lesion: over 12%": [false, false, true, false], "image size: under 0.3 megapixels": [true, false, true, true],
        "image size: larger": [false, true, false, false], "class: benign": [true, true, false, false],
        "class: malignant": [false, false, true, false], "class: normal": [false, false, false, true],
    }  # fmt: skip


def test_the_surest_errors_and_hits_come_first(answers):
    wrong = gallery.surest(answers, right=False, number=100)
    assert 5 < len(wrong) < 55
    assert set(wrong) == set(np.flatnonzero(~answers.right))
    certainty = answers.probabilities.max(axis=1)
    assert (np.diff(certainty[wrong]) <= 0).all()
    hits = gallery.surest(answers, right=True, number=3)
    assert certainty[hits].tolist() == sorted(certainty[answers.right])[::-1][:3]


def test_a_picture_shows_the_scan_and_beside_it_the_heat_with_the_lesion_outlined():
    image, mask, heat = np.full((40, 40), 100, np.uint8), np.zeros((40, 40), bool), np.zeros((40, 40), np.float32)
    mask[15:25, 15:25] = True
    heat[5, 35] = 0.2
    pixels = np.asarray(gallery.picture(image, mask, heat)).astype(int)
    left, right = pixels[:, :40], pixels[:, 44:]
    assert (left[5, 5] == 100).all() and (left[20, 20] == 100).all()
    assert (left[14, 20] == gallery.OUTLINE).all() and (right[14, 20] == gallery.OUTLINE).all()
    assert (right[5, 5] == 100).all()  # no heat covers nothing
    assert right[5, 35].tolist() != [100, 100, 100] and left[5, 35].tolist() == [100, 100, 100]
