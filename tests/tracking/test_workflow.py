"""The way of a user, through the real tools: dvc repro, mlflow run, the registry, mlflow models serve."""

import ast
import base64
import io
import json
import re
import shutil
import sys
import sysconfig
import time
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from PIL import Image

from tests import bad_bodies
from tests.conftest import run_in, ultrasound
from tests.stock_server import ask, assert_served_as_evaluated, images, serving
from ultrasound import NOTICE
from ultrasound.errors import InputError
from ultrasound.images import prepared
from ultrasound.tracking import models

P = ("p_benign", "p_malignant", "p_normal")
MODEL = "models:/breast-ultrasound@champion"


def mlflow_run(project, entry_point, *parameters, **options):
    given = [part for parameter in parameters for part in ("-P", parameter)]
    return run_in(project, "mlflow", "run", ".", "-e", entry_point, "--env-manager", "local", *given, **options)


def as_options(parameters):
    return [f"--{parameter}" for parameter in parameters]  # --train.epochs=5


def client(project):
    return mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")


def runs(project, verb):
    found = client(project).search_runs(["0"], f"tags.verb = '{verb}'", order_by=["attributes.start_time"])
    return list(found)


@pytest.fixture(scope="module")
def trained(project):
    """A run of `mlflow run . -e train`."""
    mlflow_run(project, "train", "train.epochs=3", "train.learning_rate=1e-3")
    return runs(project, "train")[-1]


@pytest.fixture(scope="module")
def registered(project, trained):
    return mlflow_run(project, "register", f"register.run={trained.info.run_id}").stdout


def test_dvc_repro_makes_all_and_then_nothing(project: Path):
    catalog, splits = (pd.read_csv(project / f"build/{name}.csv") for name in ("catalog", "splits"))
    assert catalog["label"].value_counts().to_dict() == {"benign": 28, "malignant": 28, "normal": 28}
    assert list(splits.columns) == ["image_id", "label", "group", "split", "fold", "status", "reason"]
    made = prepared.read(project / "build/prepared")
    assert made.images.shape == made.masks.shape == (84, 64, 64)
    has_lesion = made.masks.any(axis=(1, 2))
    assert (has_lesion == (made.samples["label"] != "normal")).all()
    again = run_in(project, "dvc", "repro").stdout
    assert again.count("didn't change, skipping") == 4
    stages = run_in(project, "dvc", "dag").stdout
    assert all(stage in stages for stage in ("download", "split", "preprocess", "report"))


def test_train_logs_what_a_reader_needs(project: Path, trained):
    assert trained.info.status == "FINISHED"
    history = client(project).get_metric_history(trained.info.run_id, "validation/macro_f1")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert trained.data.metrics["best/macro_f1"] == pytest.approx(max(metric.value for metric in history))
    for name in ("train/loss", "train/accuracy", "train/learning_rate", "train/images_per_second", "validation/loss",
                 "best/recall_malignant", "best/macro_auc"):  # fmt: skip
        assert name in trained.data.metrics, name
    assert trained.data.params["train.epochs"] == "3"
    assert trained.data.params["model.name"] == "test_resnet"
    digests = json.loads((project / "build/prepared/prepared.json").read_text())
    for tag in ("data_digest", "split_digest"):
        assert trained.data.tags[tag] == digests[tag]
    for tag in ("dvc_lock", "git_commit", "seed", "model_uri"):
        assert trained.data.tags[tag], tag
    inputs = {item.tags[0].value: item.dataset for item in trained.inputs.dataset_inputs}
    assert set(inputs) == {"training", "validation"}
    assert all(item.digest == f"{digests['data_digest']}-{digests['split_digest']}" for item in inputs.values())
    artifacts = {
        file.path
        for folder in ("figures", "tables")
        for file in client(project).list_artifacts(trained.info.run_id, folder)
    }
    assert artifacts == {
        "figures/augmented_examples.png", "figures/learning_curves.png", "figures/confusion_validation.png",
        "figures/reliability.png",
        "tables/predictions_validation.csv",
    }  # fmt: skip


def test_validation_images_are_the_fold_and_no_test_image_is_seen(project: Path, trained):
    file = client(project).download_artifacts(trained.info.run_id, "tables/predictions_validation.csv")
    splits = pd.read_csv(project / "build/splits.csv").set_index("image_id")
    seen = splits.loc[pd.read_csv(file)["image_id"]]
    assert (seen["split"] == "development").all()
    assert (seen["fold"] == 0).all()


def test_the_run_also_holds_system_metrics(project: Path):
    mlflow_run(project, "main", "train.epochs=1", MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="1")
    assert any(name.startswith("system/") for name in runs(project, "train")[-1].data.metrics)


def test_train_alone_makes_its_own_run_and_a_failure_is_told_in_it(project: Path):
    before = len(runs(project, "train"))
    ultrasound(project, "train", "--train.epochs", "1")
    failed = ultrasound(project, "train", "--model.weights", "packaged", expect=1 + 1)
    assert "tf_efficientnet_lite2 only" in failed.stderr
    fine, broken = runs(project, "train")[before:]
    assert fine.info.status == "FINISHED"
    assert broken.info.status == "FAILED"
    assert "packaged" in broken.data.tags["failure"]


def test_folds_are_children_and_every_development_image_is_predicted_out_of_fold(project: Path):
    output = ultrasound(project, "train", "--train.folds=all", "--train.epochs=3", "--train.learning_rate=1e-3").stdout
    parent = runs(project, "train")[-1]
    children = [run for verb in ("fold", "refit") for run in runs(project, verb)
                if run.data.tags["mlflow.parentRunId"] == parent.info.run_id]  # fmt: skip
    assert [run.info.run_name for run in children] == ["fold-0", "fold-1", "fold-2", "refit"]
    splits = pd.read_csv(project / "build/splits.csv").set_index("image_id")
    table = pd.read_csv(client(project).download_artifacts(parent.info.run_id, "tables/predictions_out_of_fold.csv"))
    development = splits.index[splits["split"] == "development"]
    assert sorted(table["image_id"]) == sorted(development)
    assert (table["fold"].to_numpy() == splits.loc[table["image_id"], "fold"].astype(float).to_numpy()).all()
    values = parent.data.metrics
    accuracy = (table["label"] == table["predicted"]).mean()
    assert values["out_of_fold/accuracy"] == pytest.approx(accuracy)
    assert values["out_of_fold/accuracy_low"] <= accuracy <= values["out_of_fold/accuracy_high"]
    of_folds = [run.data.metrics["best/macro_f1"] for run in children[:3]]
    assert values["folds/macro_f1_mean"] == pytest.approx(np.mean(of_folds))
    assert values["folds/macro_f1_sd"] == pytest.approx(np.std(of_folds, ddof=1))
    assert f"({values['out_of_fold/macro_f1_low']:.3f} to {values['out_of_fold/macro_f1_high']:.3f})" in output
    epochs = round(np.mean([run.data.metrics["best/epoch"] for run in children[:3]]))
    refit = [point.step for point in client(project).get_metric_history(children[3].info.run_id, "train/loss")]
    assert refit == list(range(1, epochs + 1))
    assert children[3].data.tags["split_digest"] == parent.data.tags["split_digest"]
    assert not any("model_uri" in run.data.tags for run in children)
    figures = {file.path for file in client(project).list_artifacts(parent.info.run_id, "figures")}
    assert {"figures/fold_curves.png", "figures/confusion_out_of_fold.png"} <= figures
    assert "augmented_examples" in str(figures)
    scored = ultrasound(project, "evaluate", "--evaluate.run", parent.info.run_id).stdout
    assert "locked test set" in scored


def test_an_ensemble_of_the_folds_answers_with_their_mean(project: Path, monkeypatch):
    ultrasound(
        project,
        "train",
        "--train.folds",
        "[0, 2]",
        "--train.ensemble",
        "true",
        "--train.test_flip",
        "true",
        "--train.batch_size",
        "auto",
    )
    run = runs(project, "train")[-1]
    assert {child.data.tags.get("batch_size") for child in runs(project, "fold")[-2:]} == {"32"}
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    model = models.load(run.data.tags["model_uri"])
    data = prepared.read(Path("build/prepared"))
    batch = torch.from_numpy(np.array(data.images[:5])).unsqueeze(1).float() / 255
    with torch.inference_mode():
        single = [member(view).softmax(1) for member in model.network.members for view in (batch, batch.flip(-1))]
    assert len(single) == 4
    np.testing.assert_allclose(model.raw(data.images[:5]), torch.stack(single).mean(0), atol=1e-6)
    served = mlflow.pyfunc.load_model(run.data.tags["model_uri"])
    files = pd.read_csv("build/catalog.csv")["image"][:5]
    images = [base64.b64encode(Path(file).read_bytes()).decode() for file in files]
    answer = pd.DataFrame(served.predict(pd.DataFrame({"image": images})))
    np.testing.assert_allclose(answer["p_malignant"], model.probabilities(data.images[:5])[:, 1], atol=1e-6)


def test_tune_leaves_a_parent_and_children_one_of_them_pruned(project: Path):
    # The study begins with two trials that learn and one that cannot.
    storage = f"sqlite:///{project}/build/optuna.db"
    pruner = optuna.pruners.NopPruner()
    study = optuna.create_study(study_name="pruned", storage=storage, direction="maximize", pruner=pruner)
    for rate in (1e-3, 2e-3, 1e-9):
        study.enqueue_trial({"train.learning_rate": rate})
    space = "tune.space={train.learning_rate: {low: 1.0e-9, high: 0.01, log: true}}"
    pretrained = ("model.name=tf_efficientnet_lite0", "model.weights=packaged")
    options = ("tune.study=pruned", "tune.trials=3", "tune.startup_trials=2", "tune.folds=[0]", "tune.repeats=1",
               "train.epochs=5", "register.name=tuned", space, *pretrained)  # fmt: skip
    output = mlflow_run(project, "tune", *options).stdout
    parent = runs(project, "tune")[-1]
    children = [run for run in runs(project, "trial") if run.data.tags["mlflow.parentRunId"] == parent.info.run_id]
    assert len(children) == 3
    assert {run.info.status for run in children} == {"FINISHED"}
    states = {run.data.params["train.learning_rate"]: run.data.tags["trial_state"] for run in children}
    assert states["0.001"] == states["0.002"] == "complete"
    assert states["1e-09"] == "pruned"
    pruned = next(run for run in children if run.data.tags["trial_state"] == "pruned")
    steps = [metric.step for metric in client(project).get_metric_history(pruned.info.run_id, "validation/macro_f1")]
    assert 1 <= len(steps) < 5
    best = next(run for run in children if run.info.run_name == parent.data.tags["best_trial"])
    assert parent.data.metrics["best/macro_f1"] == pytest.approx(best.data.metrics["out_of_fold/macro_f1"])
    assert parent.data.params["best.train.learning_rate"] == best.data.params["train.learning_rate"]
    names = {file.path for file in client(project).list_artifacts(parent.info.run_id)}
    assert {"best_params.yaml", "figures", "tables"} <= names
    assert "pruned" in output
    (again,) = [run for run in runs(project, "best") if run.data.tags["mlflow.parentRunId"] == parent.info.run_id]
    assert again.data.params["train.learning_rate"] == best.data.params["train.learning_rate"]
    assert client(project).get_model_version_by_alias("tuned", "champion").tags["run_id"] == again.info.run_id
    assert "holds its 3 trials already" in ultrasound(project, "tune", *as_options(options)).stdout
    other = ultrasound(project, "tune", *as_options((*options, "tune.folds=[1]")), expect=1)
    assert "begun with other values of tune.folds: choose a new tune.study" in other.stderr


def test_evaluate_scores_the_locked_test_set(project: Path, trained):
    output = mlflow_run(project, "evaluate", f"evaluate.run={trained.info.run_id}").stdout
    run = runs(project, "evaluate")[-1]
    splits = pd.read_csv(project / "build/splits.csv")
    test = splits[splits["split"] == "test"]
    table = pd.read_csv(client(project).download_artifacts(run.info.run_id, "tables/predictions_test.csv"))
    assert table["image_id"].tolist() == test["image_id"].tolist()
    accuracy = (table["label"] == table["predicted"]).mean()
    assert run.data.metrics["test/accuracy"] == pytest.approx(accuracy)
    assert re.search(rf"^  accuracy +{accuracy:.3f} \(", output, re.MULTILINE)
    report = json.loads(Path(client(project).download_artifacts(run.info.run_id, "evaluation.json")).read_text())
    assert np.trace(report["confusion"]) == (table["label"] == table["predicted"]).sum()
    assert run.data.tags["evaluated_model"] == trained.data.tags["model_uri"]


def test_evaluate_without_parameters_takes_the_latest_run_and_best_the_best(project: Path, trained):
    ultrasound(project, "evaluate")
    latest = runs(project, "evaluate")[-1].data.tags["evaluated_model"]
    with_models = [run for verb in ("train", "best") for run in runs(project, verb) if "model_uri" in run.data.tags]
    assert latest == max(with_models, key=lambda run: run.info.start_time).data.tags["model_uri"]
    ultrasound(project, "evaluate", "--evaluate.run", "best")
    best = runs(project, "evaluate")[-1].data.tags["evaluated_model"]
    scores = {run.data.tags["model_uri"]: run.data.metrics["best/macro_f1"] for run in with_models}
    assert scores[best] == max(scores.values())


def test_no_model_is_scored_on_a_split_that_it_was_not_trained_on(project: Path, registered, trained, tmp_path: Path):
    """The old split's training images may be the new one's test images."""
    other = tmp_path / "other"
    shutil.copytree(project, other)
    run_in(other, "sh", "-c", "sed 's/^  test_share: 0.2/  test_share: 0.3/' params.yaml > p && mv p params.yaml")
    run_in(other, "dvc", "repro")
    for verb in ("evaluate", "register"):
        refused = ultrasound(other, verb, f"--{verb}.run", trained.info.run_id, expect=1)
        assert "another split than today's" in refused.stderr
        assert "no finished run" in ultrasound(other, verb, f"--{verb}.run", "best", expect=1).stderr
    ultrasound(other, "train", "--train.epochs", "1")
    verdict = ultrasound(other, "register").stdout
    assert "trained on other data or another split and may have learnt from these images" in verdict


def test_a_model_prepared_otherwise_is_evaluated_with_its_own_preparation(
    project: Path, trained, tmp_path: Path, monkeypatch
):
    from ultrasound.params import load
    from ultrasound.tracking import evaluation

    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    data = prepared.read(Path("build/prepared"))
    table = pd.read_csv("build/catalog.csv", keep_default_na=False)
    other = prepared.write(table, data.samples, prepared.Preparation(48), tmp_path / "other")
    with mlflow.start_run():
        same, redone = (
            evaluation.evaluate(trained.data.tags["model_uri"], each, table, load(), trained) for each in (data, other)
        )
    assert same.metrics == pytest.approx(redone.metrics, nan_ok=True)


def test_register_makes_one_version_a_run_and_the_better_one_is_champion(project: Path, trained, registered):
    assert "breast-ultrasound version 1" in registered
    assert "macro-F1" in registered
    again = ultrasound(project, "register", f"--register.run={trained.info.run_id}").stdout
    assert "version 1" in again
    assert "was champion before" in again
    ultrasound(project, "train", "--train.epochs=1", "--train.learning_rate=1e-9")
    worse = runs(project, "train")[-1].info.run_id
    verdict = ultrasound(project, "register", f"--register.run={worse}").stdout
    version = client(project).get_model_version("breast-ultrasound", "2")
    assert "Not champion" in verdict
    reason, notice = version.description.split("\n\n")
    assert reason in verdict
    assert notice == NOTICE
    assert version.tags["run_id"] == worse
    champion = client(project).get_model_version_by_alias("breast-ultrasound", "champion")
    assert str(champion.version) == "1"
    assert client(project).get_registered_model("breast-ultrasound").aliases["challenger"] == version.version
    back = mlflow_run(project, "rollback", expect=None)
    assert back.returncode != 0 and "no version was champion before version 1" in back.stderr
    client(project).set_registered_model_alias("breast-ultrasound", "champion", "2")  # by hand
    assert "version 1 again" in ultrasound(project, "register", "--rollback").stdout
    champion = client(project).get_model_version_by_alias("breast-ultrasound", "champion")
    assert str(champion.version) == "1"
    for tag in ("data_digest", "split_digest", "git_commit", "dvc_lock", "seed", "test_macro_f1"):
        assert tag in champion.tags


def test_the_model_brings_its_own_code_and_needs_what_it_says(project: Path, registered):
    """In a folder without the package, the model imports the copy that lies inside it, and only pinned packages."""
    code = (
        "import sys, mlflow, importlib.metadata as m; mlflow.pyfunc.load_model(sys.argv[1]); import ultrasound; "
        "print(ultrasound.__file__); of = m.packages_distributions(); "
        "print(sorted({d for n in {k.split('.')[0] for k in sys.modules} for d in of.get(n, [])}))"
    )
    (project / "build/elsewhere").mkdir()
    store = f"sqlite:///{project}/mlflow.db"
    done = run_in(
        project / "build/elsewhere", sys.executable, "-S", "-c",
        f"import site, sys; site.ENABLE_USER_SITE = False; sys.path.append({site_packages()!r}); {code}", MODEL,
        MLFLOW_TRACKING_URI=store, PYTHONPATH="",
    )  # fmt: skip
    where, loaded = done.stdout.strip().splitlines()[-2:]
    assert "/artifacts/code/ultrasound/" in where
    assert not {"accelerate", "optuna", "dvc", "torch", "timm", "scikit-learn", "streamlit"} & set(
        ast.literal_eval(loaded)
    )


def site_packages():
    return sysconfig.get_paths()["purelib"]


def test_unknown_runs_and_runs_without_a_model_are_refused(project: Path, registered):
    assert "does not exist" in ultrasound(project, "evaluate", "--evaluate.run=0123abc", expect=1).stderr
    no_model = runs(project, "register")[-1].info.run_id
    assert "has no model" in ultrasound(project, "register", f"--register.run={no_model}", expect=1).stderr


@pytest.fixture(scope="module")
def server(project, registered):
    with serving(project, MODEL) as url:
        yield url


def test_served_probabilities_are_those_of_evaluate(project: Path, trained, server):
    assert_served_as_evaluated(project, trained.info.run_id, project / "build/phantoms", server)


def png(mode, size):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def told(answer):
    return answer.get("message", "") if isinstance(answer, dict) else ""


def test_bad_bodies_are_answered_with_400_and_no_traceback_of_the_model(server, project):
    """All kinds, and generated ones, under MLflow's stock server."""

    def wrong(body, least=200):
        status, answer = ask(server, body)
        text = json.dumps(answer)
        if told(answer).startswith(("Image ", "The request must")):  # the model's own, not of MLflow's parser
            return "" if status == 400 and len(text) < 400 else text
        return "" if least <= status < 500 and "stack_trace" not in text else f"{status} {text[:300]}"

    assert {name: said for name, body in bad_bodies.KINDS.items() if (said := wrong(body, 400))} == {}

    @settings(
        max_examples=bad_bodies.EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(bad_bodies.GENERATED)
    def generated(body):
        assert not wrong(body)

    generated()
    assert ask(server, images(png("L", (200, 150))))[0] == 200


def test_it_answers_the_same_in_an_environment_made_from_what_it_pins(project, server, tmp_path):
    file = (project / "build/phantoms/malignant/malignant (1).png").read_bytes()
    with serving(project, MODEL, "uv", MLFLOW_ENV_ROOT=str(tmp_path)) as url:
        status, answer = ask(url, images(file))
    (here,) = ask(server, images(file))[1]["predictions"]
    assert status == 200 and answer["predictions"] == [{**here, **{p: pytest.approx(here[p], abs=1e-5) for p in P}}]
    assert list(tmp_path.rglob("bin/python")), "the environment was made elsewhere"
    assert not list(tmp_path.rglob("site-packages/torch"))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (images("not base64!"), "Image 1 is not valid base64."),
        (images(b"plain text, no image"), "Image 1 is not a PNG, JPEG or DICOM file."),
        (images(None), "Image 1 must be a base64 string of a PNG, JPEG or DICOM file."),
        (images(png("L", (50, 50)), "?"), "Image 2 is not valid base64."),
        (images(*[png("L", (50, 50))] * 17), "The request must hold 1 to 16 images, found 17."),
        (images(), "The request must hold 1 to 16 images, found 0."),
    ],
)
def test_the_model_says_what_is_wrong_in_one_sentence(server, body, sentence):
    status, answer = ask(server, body)
    assert (status, answer["message"]) == (400, sentence)
    assert "stack_trace" not in answer


def test_heat_maps_are_asked_for_and_lie_over_the_scan(project, server):
    file = (project / "build/phantoms/malignant/malignant (1).png").read_bytes()
    status, answer = ask(server, images(file) | {"params": {"explain": True}})
    (row,) = answer["predictions"]
    assert status == 200
    shown = Image.open(io.BytesIO(base64.b64decode(row["heat_map"])))
    assert shown.size == Image.open(io.BytesIO(file)).size and shown.mode == "L"
    assert 200 < np.asarray(shown).max() <= 255
    assert "heat_map" not in ask(server, images(file))[1]["predictions"][0]


def test_pictures_of_another_kind_are_not_answered(server):
    photo = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    kinds = {"coloured": Image.fromarray(photo), "does not look like": Image.fromarray(photo[:, :, 0]),
             "too small": Image.new("L", (40, 40))}  # fmt: skip
    for reason, image in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        (row,) = ask(server, images(buffer.getvalue()))[1]["predictions"]
        assert row["abstain"] is True and reason in row["abstain_reason"]


@pytest.mark.parametrize("name", ["artifacts/classifier/weights.safetensors", "artifacts/classifier/network.onnx",
                                  "code/ultrasound/inference/predictor.py", "artifacts/classifier/classifier.json",
                                  "MLmodel", "requirements.txt"])  # fmt: skip
def test_a_model_of_which_a_byte_was_changed_does_not_load(project, registered, tmp_path, name, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    copy = Path(mlflow.artifacts.download_artifacts(MODEL, dst_path=str(tmp_path)))
    content = bytearray((copy / name).read_bytes())
    # In text, no part of its syntax, which MLflow would refuse before us.
    place = content.index(b"mlflow_version: ") + len("mlflow_version: ") if name == "MLmodel" else len(content) - 2
    content[place] ^= 1
    (copy / name).write_bytes(content)
    began = time.process_time()
    refusals = (InputError, mlflow.MlflowException, SyntaxError)
    with pytest.raises(refusals, match=r"was changed|damaged|invalid") as refused:
        mlflow.pyfunc.load_model(str(copy))
    assert time.process_time() - began < 2
    assert Path(name).name in str(refused.value)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
def test_every_kind_of_png_is_answered(server, mode):
    status, answer = ask(server, images(png(mode, (80, 60))))
    assert status == 200
    row = answer["predictions"][0]
    assert sum(row[name] for name in row if name.startswith("p_")) == pytest.approx(1)
    assert set(row["prediction_set"]) <= {"benign", "malignant", "normal"}
    assert row["malignant_flag"] in (True, False)


def test_an_experiment_of_a_server_is_refused_with_the_remedy(tmp_path: Path, project: Path):
    store = f"sqlite:///{tmp_path}/other.db"
    mlflow.MlflowClient(store).create_experiment("remote", artifact_location="mlflow-artifacts:/1")
    refused = ultrasound(project, "train", MLFLOW_TRACKING_URI=store, MLFLOW_EXPERIMENT_NAME="remote", expect=1)
    assert "MLFLOW_TRACKING_URI" in refused.stderr
    assert "Traceback" not in refused.stderr
