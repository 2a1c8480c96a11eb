"""The choice of the rule that turns probabilities into outlines."""

import numpy as np
import pytest

from tests.scoring.test_outlines import masks
from ultrasound.inference.regions import Rule
from ultrasound.scoring import outlines, rules


def levels_of(truths, noise=0):
    """Levels that know the truth, and faint blobs in images without a lesion."""
    levels = np.where(truths, 220, 10).astype(np.uint8)
    for level, truth in zip(levels, truths, strict=True):
        if not truth.any() and noise:
            level[5:8, 5:8] = noise
    return levels


def test_the_rule_that_is_chosen_is_the_best_of_those_tried_and_takes_no_false_lesions_for_nothing():
    truths = np.zeros((20, 32, 32), bool)
    truths[:12, 8:20, 8:20] = True
    levels = levels_of(truths, noise=150)
    rule = rules.choose(rules.try_all(truths, levels))
    assert rule.chosen_on == 20
    founds = np.stack([rule.mask(level) for level in levels])
    assert (founds == truths).all()

    def dice(rule):
        return outlines.table(truths, np.stack([rule.mask(level) for level in levels]))["dice"].mean()

    noise = np.random.default_rng(0).integers(-60, 30, levels.shape)
    levels = (levels.astype(int) + noise).clip(0, 255).astype(np.uint8)
    tried = rules.try_all(truths, levels)
    every = [Rule(edge, max(edge, core), smallest, 20) for edge, core, smallest in rules.RULES]
    assert tried.mean(axis=0) == pytest.approx([dice(rule) for rule in every])
    assert dice(rules.choose(tried)) == pytest.approx(max(tried.mean(axis=0)))


def test_a_single_fold_is_outlined_by_what_is_more_probable_than_not():
    levels = np.random.default_rng(0).integers(0, 256, (3, 16, 16)).astype(np.uint8)
    tried = rules.try_all(levels > 200, levels)
    founds, chosen = rules.masks_out_of_fold(tried, levels, np.zeros(3, np.int64))
    assert chosen == {0: rules.HALF}
    np.testing.assert_array_equal(founds, levels >= 128)


def test_no_image_is_outlined_by_a_rule_that_it_has_helped_to_choose():
    folds, truths = np.arange(12) % 3, masks(3, 12)
    levels = np.random.default_rng(0).integers(0, 256, truths.shape).astype(np.uint8)
    tried = np.zeros((12, len(rules.RULES)))
    for row in range(12):  # each fold is best outlined by a rule of its own
        tried[row, 10 * folds[row]] = 1
    tried[:, 35] = 0.4  # for the other two folds together, any of theirs is better than this one
    founds, chosen = rules.masks_out_of_fold(tried, levels, folds)
    for fold in range(3):
        others = [10 * other for other in range(3) if other != fold]
        edge, core, smallest = max(rules.RULES[column] for column in others)
        assert chosen[fold] == Rule(edge, max(edge, core), smallest, 8)
        for row in np.flatnonzero(folds == fold):
            np.testing.assert_array_equal(founds[row], chosen[fold].mask(levels[row]))
