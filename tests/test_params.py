import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import PROJECT, run_in, ultrasound
from ultrasound import params
from ultrasound.errors import ParameterError

FILE = PROJECT / "params.yaml"


def test_params_yaml_is_valid_and_frozen():
    loaded = params.load(file=FILE)
    assert loaded.model.name == "resnet50"
    with pytest.raises(Exception, match="frozen"):
        loaded.train.epochs = 5  # type: ignore[misc]


def test_overrides_reach_their_section():
    loaded = params.load({"train.epochs": 5, "model.name": "densenet121"}, FILE)
    assert (loaded.train.epochs, loaded.model.name) == (5, "densenet121")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train.epochz": 5}, ["unknown parameter train.epochz", "did you mean train.epochs?"]),
        ({"trian.epochs": 5}, ["unknown parameter trian.epochs", "did you mean train.epochs?"]),
        ({"epochs": 5}, ["unknown parameter epochs"]),
        ({"train.epochs": "many"}, ["train.epochs='many'", "integer"]),
        ({"train.epochs": 0}, ["train.epochs=0", "greater than or equal to 1"]),
        ({"train.epochs": True}, ["train.epochs=True"]),
        ({"train.epochs": 2.5}, ["train.epochs=2.5"]),
        ({"train.learning_rate": float("nan")}, ["train.learning_rate"]),
        ({"train.schedule": "linear"}, ["train.schedule='linear'", "cosine"]),
        ({"train.folds": 5}, ["train.folds=5", "0 to 4"]),
        ({"train.folds": [0, 0]}, ["train.folds=(0, 0)", "different"]),
        ({"train.folds": []}, ["train.folds=()"]),
        ({"train.folds": "most"}, ["train.folds='most'", "integer or list or all"]),
        ({"train.batch_size": "large"}, ["train.batch_size='large'", "integer or auto"]),
        ({"train.class_weights": "some"}, ["train.class_weights='some'", "auto or none or list"]),
        ({"train.ensemble": True}, ["train.ensemble", "train.folds=all"]),
        ({"train.freeze": 30}, ["train.freeze=30", "15 epochs"]),
        ({"train.ema": 1}, ["train.ema=1", "less than 1"]),
        ({"data.classes": ["benign", "benign"]}, ["data.classes", "twice"]),
        ({"tune.space": {"train.learning_rate": {"low": 1, "high": 0.1}}}, ["tune.space", "low < high"]),
        ({"tune.space": {"train.learning_rate": {"low": 0, "high": 0.1, "log": True}}}, ["low > 0"]),
        ({"split.test_share": 1.5}, ["split.test_share=1.5", "less than 0.9"]),
    ],
)
def test_impossible_values_are_one_sentence_that_names_the_key(overrides, words):
    with pytest.raises(ParameterError) as caught:
        params.load(overrides, FILE)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_missing_key_missing_file_and_broken_yaml(tmp_path):
    values = yaml.safe_load(FILE.read_text())
    del values["train"]["epochs"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ParameterError, match=r"parameter train\.epochs is missing"):
        params.load(file=tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("train: [")
    with pytest.raises(ParameterError, match="no valid YAML"):
        params.load(file=tmp_path / "params.yaml")
    with pytest.raises(ParameterError, match="top folder"):
        params.load(file=tmp_path / "elsewhere.yaml")


def test_every_parameter_is_described():
    assert all(text for _, _, text in params.known())
    flat = params.flatten(params.load(file=FILE))
    assert {key for key, _, _ in params.known()} == set(flat)


def test_command_line_help_and_errors(fresh: Path):
    told = run_in(fresh, sys.executable, "-X", "importtime", "-m", "ultrasound", "--help")
    text = told.stdout
    assert not {"torch", "mlflow", "timm", "sklearn", "pandas"} & {line.split("|")[-1].strip()
                                                                   for line in told.stderr.splitlines()}  # fmt: skip
    verbs = yaml.safe_load((PROJECT / "MLproject").read_text())["entry_points"].keys() - {"main"}
    assert all(verb in text for verb in verbs | {"download", "split", "preprocess", "doctor"})
    train = ultrasound(fresh, "train", "--help").stdout
    assert "--train.learning_rate NUMBER" in train
    assert "peak learning rate" in " ".join(train.split())
    epochs = params.load(file=FILE).segment.recipe["train.epochs"]
    segment = ultrasound(PROJECT, "segment", "--help").stdout
    assert f"[{epochs}, by segment.recipe]" in " ".join(segment.split())
    for key, of_segment in (("model.dropout", False), ("train.empty_weight", True), ("train.epochs", True)):
        assert (f"--{key} " in segment) == of_segment
        assert (f"--{key} " in train) == (key != "train.empty_weight")  # which it would refuse
    unknown = ultrasound(fresh, "train", "--train.epochz", "3", expect=2)
    assert "--train.epochs" in unknown.stderr
    wrong = ultrasound(fresh, "train", "--train.epochs", "many", expect=2)
    assert wrong.stderr.count("\n") == 1
    assert "train.epochs='many'" in wrong.stderr
    stage = ultrasound(fresh, "train", "--split.seed", "3", expect=2)
    assert "belongs to the data stages" in stage.stderr
    assert ultrasound(fresh, "trian", expect=2).stderr.count("train")


def test_training_before_the_stages_says_dvc_repro(fresh: Path):
    for verb in ("train", "tune", "evaluate", "register"):
        refused = ultrasound(fresh, verb, expect=1)
        assert "run `dvc repro` first" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert "run `dvc repro` first" in ultrasound(fresh, "split", expect=1).stderr


def test_parameters_that_changed_since_dvc_repro_are_noticed(prepared, tmp_path: Path):
    project = prepared(tmp_path / "project")
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("test_share: 0.2", "test_share: 0.3"))
    refused = ultrasound(project, "train", expect=1)
    assert "split.test_share is 0.3, but build/ was made with 0.2: run `dvc repro`" in refused.stderr
