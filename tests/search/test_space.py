import optuna
import pytest

from tests.conftest import PROJECT
from ultrasound import params
from ultrasound.errors import ParameterError
from ultrasound.search import space as spaces
from ultrasound.tracking.classification import CLASSIFICATION
from ultrasound.tracking.segmentation import SEGMENTATION


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
        ("train.clip", {"low": 0, "high": 1, "when": {"train.optimizer": "adamw"}}, "waits for train.optimizer=adamw"),
        ("preprocess.size", {"choices": [64, 128]}, "preprocess.size cannot be searched"),
    ],
)
def test_spaces_that_mean_nothing_are_refused_before_the_first_trial(key, allowed, words):
    with pytest.raises(ParameterError) as caught:
        spaces.check(with_space(**{key: allowed}))
    assert words in str(caught.value)


def test_what_is_searched_for_follows_from_the_metric_and_its_space_must_mean_something_to_it():
    def of(metric, *space):
        changes = {"tune.metric": metric, "tune.space": {key: {"low": 16, "high": 64} for key in space}}
        return params.load(changes, PROJECT / "params.yaml")

    outlines, classes = of("lesion_dice", "segment.width"), of("macro_f1", "train.batch_size")
    spaces.check(outlines)
    spaces.check(classes)
    assert spaces.task(outlines) is SEGMENTATION and spaces.task(classes) is CLASSIFICATION
    shared = spaces.fixed_values(outlines)
    assert "model.dropout" not in shared and "segment.width" not in shared and "train.epochs" in shared
    assert spaces.fixed_values(of("dice", "train.batch_size"))["segment.width"] == outlines.segment.width
    with pytest.raises(ParameterError, match=r"train\.layer_decay: a U-Net"):
        spaces.check(params.override(outlines, {"train.layer_decay": 0.9}))
    with pytest.raises(ParameterError, match=r"segment\.recipe: model\.dropout means nothing"):
        spaces.check(params.override(outlines, {"segment.recipe": {"model.dropout": 0.1}}))
    assert "model.dropout" in spaces.fixed_values(classes) and "segment.width" not in spaces.fixed_values(classes)
    for metric, key in (("dice", "model.head_width"), ("macro_f1", "segment.width")):
        with pytest.raises(ParameterError, match=f"{key} means nothing where {metric} is compared"):
            spaces.check(of(metric, key))
    with pytest.raises(ParameterError, match=r"tune\.metric=beauty: there are accuracy, .*or of outlines dice, lesion"):
        spaces.check(of("beauty", "train.batch_size"))


def test_drawn_values_lie_in_the_space_and_have_the_parameters_type():
    space = {
        "train.learning_rate": {"low": 0.0001, "high": 0.01, "log": True},
        "train.batch_size": {"low": 8, "high": 64},
        "train.schedule": {"choices": ["cosine", "constant"]},
    }
    loaded = with_space(**space)
    spaces.check(loaded)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        chosen = params.override(loaded, spaces.suggest(study.ask(), loaded)).train
        assert 0.0001 <= chosen.learning_rate <= 0.01
        assert 8 <= chosen.batch_size <= 64
        assert chosen.schedule in ("cosine", "constant")
    assert len({trial.params["train.batch_size"] for trial in study.trials}) > 5


def test_what_trials_share_names_the_rest_and_the_space():
    loaded = with_space(**{"train.learning_rate": {"low": 0.0001, "high": 0.01}})
    shared = spaces.fixed_values(loaded)
    assert "train.learning_rate" not in shared
    assert shared["train.epochs"] == loaded.train.epochs
    assert shared["tune.metric"] == "macro_f1"
    assert "train.device" not in shared  # machines of a team differ
    assert shared["tune.space.train.learning_rate"]["high"] == 0.01


CONDITIONAL = {
    "train.optimizer": {"choices": ["adam", "adamw"]},
    "train.weight_decay": {"low": 0.01, "high": 0.1, "when": {"train.optimizer": "adamw"}},
}


def test_a_condition_decides_whether_a_value_is_drawn():
    loaded = with_space(**CONDITIONAL)
    spaces.check(loaded)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, multivariate=True, group=True))
    seen = set()
    for _ in range(20):
        trial = study.ask()
        drawn = spaces.suggest(trial, loaded)
        assert ("train.weight_decay" in drawn) == (drawn["train.optimizer"] == "adamw")
        seen.add(drawn["train.optimizer"])
        study.tell(trial, 0.5)
    assert seen == {"adam", "adamw"}


def test_the_defaults_are_those_of_the_file_where_the_space_holds_them():
    changed = {"train.optimizer": "adamw", "train.weight_decay": 0.05}
    loaded = params.load({"tune.space": CONDITIONAL, **changed}, PROJECT / "params.yaml")
    assert spaces.defaults(loaded) == changed
    loaded = params.override(loaded, {"train.weight_decay": 0.5})
    assert spaces.defaults(loaded) == {"train.optimizer": "adamw"}
    loaded = params.override(loaded, {"train.optimizer": "adam"})
    assert spaces.defaults(loaded) == {"train.optimizer": "adam"}
