"""When a trial is given up, against hand-made studies."""

import optuna
import pytest
from optuna.trial import TrialState

from ultrasound import params as parameters
from ultrasound.search import pruning

FOLDS, EPOCHS = 5, 4


def study(direction="maximize", **tune):
    changes = {f"tune.{key}": value for key, value in tune.items()} | {"train.epochs": EPOCHS, "train.freeze": 0}
    pruner = pruning.FoldsAndEpochs(parameters.load(changes))
    return optuna.create_study(direction=direction, pruner=pruner)


def add(made, epochs, folds, value):
    """A complete trial: scores of the epochs of the first fold but the last, scores of the folds."""
    reported = dict(enumerate(epochs, 1)) | {EPOCHS * (number + 1): score for number, score in enumerate(folds)}
    made.add_trial(
        optuna.create_trial(state=TrialState.COMPLETE, value=value, intermediate_values=reported)
    )  # fmt: skip


def given_up(made, epochs, folds=()):
    """The step at which a new trial with these scores is given up; None if it never is."""
    trial = made.ask()
    steps = [*enumerate(epochs, 1), *((EPOCHS * (number + 1), score) for number, score in enumerate(folds))]
    for step, score in steps:
        trial.report(score, step)
        if trial.should_prune():
            return step
    return None


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1), ("minimize", -1)])
def test_epochs_of_the_first_fold_are_compared_with_the_median(direction, sign):
    made = study(direction, prune_epochs="median", startup_trials=2, prune_folds=0)
    for best in (0.6, 0.8):
        add(made, [sign * best * part for part in (0.5, 0.7, 0.9)], [sign * best] * FOLDS, sign * best)
    assert given_up(made, [sign * 0.1] * 3) == 1
    assert given_up(made, [sign * score for score in (0.5, 0.3, 0.9)]) is None  # by its best epoch so far
    assert given_up(made, [sign * 0.75] * 3, [sign * 0.1] * FOLDS) is None  # folds are another pruner's


def test_the_first_trials_are_not_given_up():
    made = study(prune_epochs="median", startup_trials=2, prune_folds=0)
    add(made, [0.9] * 3, [0.9] * FOLDS, 0.9)
    assert given_up(made, [0.1] * 3) is None


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1), ("minimize", -1)])
def test_folds_are_compared_with_those_of_the_best_trial(direction, sign):
    made = study(direction, prune_epochs="none", prune_folds=0.2)
    add(made, [0.5] * 3, [sign * score for score in (0.80, 0.81, 0.82, 0.83, 0.84)], sign * 0.82)
    worse = [sign * score for score in (0.70, 0.72, 0.74, 0.76, 0.78)]
    assert given_up(made, [0.0] * 3, worse) == 3 * EPOCHS  # 3 of 3 worse: p = 0.125
    mixed = [sign * score for score in (0.79, 0.83, 0.81, 0.85, 0.83)]
    assert given_up(made, [0.0] * 3, mixed) is None


def test_hyperband_gives_up_what_is_behind_at_a_rung():
    made = study(prune_epochs="hyperband", prune_folds=0)
    ends = [given_up(made, [quality] * 3, [quality] * FOLDS) for quality in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)]
    assert ends[0] is None
    assert any(step is not None and step < EPOCHS for step in ends[1:])


def test_nothing_is_given_up_where_that_is_asked_for():
    made = study(prune_epochs="none", prune_folds=0)
    add(made, [0.9] * 3, [0.9] * FOLDS, 0.9)
    assert given_up(made, [0.1] * 3, [0.1] * FOLDS) is None


def test_a_fold_ends_after_the_longest_training_that_may_be():
    space = {"train.freeze": {"choices": [0, 1]}, "train.epochs": {"low": 5, "high": 10, "when": {"train.freeze": 1}}}
    chosen = parameters.load({"train.epochs": 15, "tune.space": space})
    assert pruning.fold_end(chosen, 1) == 30
