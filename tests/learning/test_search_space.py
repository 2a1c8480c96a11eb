import optuna
import pytest

from tests.conftest import PROJECT
from ultrasound import params
from ultrasound.errors import ParameterError
from ultrasound.learning import search_space


def with_space(**space):
    return params.load({"tune.space": space}, PROJECT / "params.yaml")


@pytest.mark.parametrize(
    ("key", "allowed", "words"),
    [
        ("train.learning_rate", {"low": 0.001, "high": 5.0}, "train.learning_rate=5.0"),
        ("train.learning_rat", {"low": 0.001, "high": 0.1}, "did you mean train.learning_rate?"),
        ("train.batch_size", {"low": 1, "high": 64}, "train.batch_size=1"),
        ("train.schedule", {"choices": ["cosine", "linear"]}, "train.schedule='linear'"),
        ("train.folds", {"choices": [0, 1]}, "train.folds cannot be searched"),
        ("train.seed", {"choices": [0, 1]}, "train.seed cannot be searched"),
        ("split.seed", {"choices": [0, 1]}, "split.seed cannot be searched"),
        ("preprocess.size", {"choices": [64, 128]}, "preprocess.size cannot be searched"),
    ],
)
def test_spaces_that_mean_nothing_are_refused_before_the_first_trial(key, allowed, words):
    with pytest.raises(ParameterError) as caught:
        search_space.check(with_space(**{key: allowed}))
    assert words in str(caught.value)


def test_drawn_values_lie_in_the_space_and_have_the_parameters_type():
    space = {
        "train.learning_rate": {"low": 0.0001, "high": 0.01, "log": True},
        "train.batch_size": {"low": 8, "high": 64},
        "train.schedule": {"choices": ["cosine", "constant"]},
    }
    loaded = with_space(**space)
    search_space.check(loaded)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        chosen = search_space.suggest(study.ask(), loaded).train
        assert 0.0001 <= chosen.learning_rate <= 0.01
        assert 8 <= chosen.batch_size <= 64
        assert chosen.schedule in ("cosine", "constant")
    assert len({trial.params["train.batch_size"] for trial in study.trials}) > 5


def test_what_trials_share_names_the_rest_and_the_space():
    loaded = with_space(**{"train.learning_rate": {"low": 0.0001, "high": 0.01}})
    shared = search_space.fixed_values(loaded)
    assert "train.learning_rate" not in shared
    assert shared["train.folds"] == 0
    assert shared["tune.space.train.learning_rate"]["high"] == 0.01
