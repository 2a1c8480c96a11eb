"""The way of a user, through the real tools: dvc repro, mlflow run, the registry, mlflow models serve."""

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import environment, run_in, ultrasound
from ultrasound.images import prepared

MODEL = "models:/breast-ultrasound@champion"


def mlflow_run(project, entry_point, *parameters, **options):
    given = [part for parameter in parameters for part in ("-P", parameter)]
    return run_in(project, "mlflow", "run", ".", "-e", entry_point, "--env-manager", "local", *given, **options)


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
    assert list(splits.columns) == ["image_id", "label", "group", "split", "fold", "reason"]
    made = prepared.read(project / "build/prepared")
    assert made.images.shape == made.masks.shape == (84, 64, 64)
    has_lesion = made.masks.any(axis=(1, 2))
    assert (has_lesion == (made.samples["label"] != "normal")).all()
    again = run_in(project, "dvc", "repro").stdout
    assert again.count("didn't change, skipping") == 3
    stages = run_in(project, "dvc", "dag").stdout
    assert all(stage in stages for stage in ("download", "split", "preprocess"))


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
        "figures/learning_curves.png", "figures/confusion_validation.png", "tables/predictions_validation.csv",
    }  # fmt: skip


def test_validation_images_are_the_fold_and_no_test_image_is_seen(project: Path, trained):
    file = client(project).download_artifacts(trained.info.run_id, "tables/predictions_validation.csv")
    splits = pd.read_csv(project / "build/splits.csv").set_index("image_id")
    seen = splits.loc[pd.read_csv(file)["image_id"]]
    assert (seen["split"] == "development").all()
    assert (seen["fold"] == 0).all()


def test_the_run_also_holds_system_metrics(project: Path):
    mlflow_run(project, "main", "train.epochs=60", "train.patience=60", "model.name=resnet18")
    assert any(name.startswith("system/") for name in runs(project, "train")[-1].data.metrics)


def test_train_alone_makes_its_own_run_and_a_failure_is_told_in_it(project: Path):
    before = len(runs(project, "train"))
    ultrasound(project, "train", "--train.epochs", "1")
    failed = ultrasound(project, "train", "--model.weights", "packaged", expect=1 + 1)
    assert "tf_efficientnet_lite0 only" in failed.stderr
    fine, broken = runs(project, "train")[before:]
    assert fine.info.status == "FINISHED"
    assert broken.info.status == "FAILED"
    assert "packaged" in broken.data.tags["failure"]


def test_tune_leaves_a_parent_and_children_one_of_them_pruned(project: Path):
    # The study begins with two trials that learn and one that cannot; TPE chooses the fourth.
    storage = f"sqlite:///{project}/build/optuna.db"
    pruner = optuna.pruners.NopPruner()
    study = optuna.create_study(study_name="pruned", storage=storage, direction="maximize", pruner=pruner)
    for rate in (1e-3, 2e-3, 1e-9):
        study.enqueue_trial({"train.learning_rate": rate})
    space = "tune.space={train.learning_rate: {low: 1.0e-9, high: 0.01, log: true}}"
    pretrained = ("model.name=tf_efficientnet_lite0", "model.weights=packaged")
    options = ("tune.study=pruned", "tune.trials=4", "tune.startup_trials=2", "train.epochs=5", space, *pretrained)
    output = mlflow_run(project, "tune", *options).stdout
    parent = runs(project, "tune")[-1]
    children = [run for run in runs(project, "trial") if run.data.tags["mlflow.parentRunId"] == parent.info.run_id]
    assert len(children) == 4
    assert {run.info.status for run in children} == {"FINISHED"}
    states = {run.data.params["train.learning_rate"]: run.data.tags["trial_state"] for run in children}
    assert states["0.001"] == states["0.002"] == "complete"
    assert states["1e-09"] == "pruned"
    pruned = next(run for run in children if run.data.tags["trial_state"] == "pruned")
    steps = [metric.step for metric in client(project).get_metric_history(pruned.info.run_id, "validation/macro_f1")]
    assert 1 <= len(steps) < 5
    best = next(run for run in children if run.info.run_name == parent.data.tags["best_trial"])
    assert parent.data.metrics["best/macro_f1"] == pytest.approx(best.data.metrics["best/macro_f1"])
    assert parent.data.params["best.train.learning_rate"] == best.data.params["train.learning_rate"]
    assert "model_uri" in best.data.tags
    names = {file.path for file in client(project).list_artifacts(parent.info.run_id)}
    assert {"best_params.yaml", "figures", "tables"} <= names
    assert "PRUNED" in output
    again = mlflow_run(project, "tune", *options).stdout
    assert "holds its 4 trials already" in again
    mlflow_run(project, "register", f"register.run={best.info.run_id}", "register.name=tuned")
    assert client(project).get_model_version_by_alias("tuned", "champion").tags["run_id"] == best.info.run_id


def test_the_search_space_is_checked_before_the_first_trial(project: Path):
    before = len(runs(project, "tune"))
    space = "tune.space={train.learning_rate: {low: 0.001, high: 5.0}}"
    assert "train.learning_rate=5.0" in mlflow_run(project, "tune", space, expect=1).stderr
    unknown = "tune.space={train.learning_rat: {low: 0.001, high: 0.1}}"
    assert "did you mean train.learning_rate?" in mlflow_run(project, "tune", unknown, expect=1).stderr
    assert len(runs(project, "tune")) == before


def test_evaluate_scores_the_locked_test_set(project: Path, trained):
    output = mlflow_run(project, "evaluate", f"evaluate.run={trained.info.run_id}").stdout
    run = runs(project, "evaluate")[-1]
    splits = pd.read_csv(project / "build/splits.csv")
    test = splits[splits["split"] == "test"]
    table = pd.read_csv(client(project).download_artifacts(run.info.run_id, "tables/predictions_test.csv"))
    assert table["image_id"].tolist() == test["image_id"].tolist()
    accuracy = (table["label"] == table["predicted"]).mean()
    assert run.data.metrics["test/accuracy"] == pytest.approx(accuracy)
    assert f"accuracy           {accuracy:.3f}" in output
    report = json.loads(Path(client(project).download_artifacts(run.info.run_id, "evaluation.json")).read_text())
    assert np.trace(report["confusion"]) == (table["label"] == table["predicted"]).sum()
    assert run.data.tags["evaluated_model"] == trained.data.tags["model_uri"]


def test_a_model_prepared_otherwise_is_evaluated_with_its_own_preparation(project: Path, trained, tmp_path: Path):
    from ultrasound.tracking import models

    os.chdir(project)
    mlflow.set_tracking_uri(f"sqlite:///{project}/mlflow.db")
    data = prepared.read(Path("build/prepared"))
    table = pd.read_csv("build/catalog.csv", keep_default_na=False)
    other = prepared.write(table, data.samples, prepared.Preparation(48), tmp_path / "other")
    with mlflow.start_run():
        same = models.evaluate(trained.data.tags["model_uri"], data, table)
        redone = models.evaluate(trained.data.tags["model_uri"], other, table)
    assert same.metrics == redone.metrics


def test_register_makes_one_version_a_run_and_the_better_one_is_champion(project: Path, trained, registered):
    assert "breast-ultrasound version 1" in registered
    assert "macro_f1" in registered
    again = mlflow_run(project, "register", f"register.run={trained.info.run_id}").stdout
    assert "version 1" in again
    assert "was it before" in again
    mlflow_run(project, "train", "train.epochs=1", "train.learning_rate=1e-9")
    worse = runs(project, "train")[-1].info.run_id
    verdict = mlflow_run(project, "register", f"register.run={worse}").stdout
    version = client(project).get_model_version("breast-ultrasound", "2")
    assert "Not champion" in verdict
    assert version.description in verdict
    assert version.tags["run_id"] == worse
    champion = client(project).get_model_version_by_alias("breast-ultrasound", "champion")
    assert str(champion.version) == "1"
    for tag in ("data_digest", "split_digest", "git_commit", "dvc_lock", "seed", "test_macro_f1"):
        assert tag in champion.tags


def test_unknown_runs_and_runs_without_a_model_are_refused(project: Path, registered):
    assert "does not exist" in mlflow_run(project, "evaluate", "evaluate.run=0123abc", expect=1).stderr
    no_model = runs(project, "register")[-1].info.run_id
    assert "has no model" in mlflow_run(project, "register", f"register.run={no_model}", expect=1).stderr


@pytest.fixture(scope="module")
def server(project, registered):
    """The stock scoring server, which may not read a pickle."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        ["mlflow", "models", "serve", "-m", MODEL, "--env-manager", "local", "-p", str(port)],
        cwd=project, env=environment(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false"), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        for _ in range(120):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            assert process.poll() is None, process.stdout.read().decode()
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(url, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def images(*contents):
    rows = [[base64.b64encode(c).decode() if isinstance(c, bytes) else c] for c in contents]
    return {"dataframe_split": {"columns": ["image"], "data": rows}}


def test_served_probabilities_are_those_of_evaluate(project: Path, trained, server):
    mlflow_run(project, "evaluate", f"evaluate.run={trained.info.run_id}")
    run = runs(project, "evaluate")[-1]
    table = pd.read_csv(client(project).download_artifacts(run.info.run_id, "tables/predictions_test.csv"))
    files = [(project / "build/phantoms" / f"{name}.png").read_bytes() for name in table["image_id"]]
    answers = []
    for start in range(0, len(files), 16):
        status, answer = ask(server, images(*files[start : start + 16]))
        assert status == 200
        answers += answer["predictions"]
    served = pd.DataFrame(answers)
    columns = ["p_benign", "p_malignant", "p_normal"]
    np.testing.assert_allclose(served[columns].to_numpy(), table[columns].to_numpy(), atol=1e-5)
    assert served["label"].tolist() == table["predicted"].tolist()
    assert set(served["model_version"]) == {"breast-ultrasound/1"}
    assert "not a medical device" in served["notice"][0]


def png(mode, size):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def huge_png():
    """A true header of 100 megapixels before a short body: decoding it would fill memory."""
    header = (10_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (images("not base64!"), "Image 1 is not valid base64."),
        (images("QUJD QUJD"), "Image 1 is not valid base64."),
        (images(b"plain text, no image"), "Image 1 is not a PNG or JPEG image."),
        (images(None), "Image 1 must be a base64 string of a PNG or JPEG file."),
        (images(""), "Image 1 must be a base64 string of a PNG or JPEG file."),
        (images(5), "Image 1 must be a base64 string of a PNG or JPEG file."),
        (images(huge_png()), "Image 1 has more than 25 megapixels."),
        (images(png("L", (50, 50))[:60]), "Image 1 is damaged"),
        (images(png("L", (50, 50)), "?"), "Image 2 is not valid base64."),
        (images(b"GIF89a" + bytes(20)), "Image 1 is not a PNG or JPEG image."),
        (images(*[png("L", (50, 50))] * 17), "The request must hold 1 to 16 images, found 17."),
        (images(), "The request must hold 1 to 16 images, found 0."),
        ({"dataframe_split": {"columns": ["picture"], "data": [["x"]]}}, "Model is missing inputs ['image']"),
        ({"image": "x"}, ""),
        (b"{", ""),
    ],
)
def test_bad_requests_are_400_with_a_sentence_and_no_traceback(server, body, sentence):
    status, answer = ask(server, body)
    assert status == 400
    assert sentence in answer["message"]
    assert "Traceback" not in json.dumps(answer)
    if sentence.startswith(("Image", "The request")):
        assert answer["message"].startswith(sentence)
        assert "stack_trace" not in answer
    assert ask(server, images(png("L", (60, 50))))[0] == 200


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
def test_every_kind_of_png_is_answered(server, mode):
    status, answer = ask(server, images(png(mode, (80, 60))))
    assert status == 200
    row = answer["predictions"][0]
    assert sum(row[name] for name in row if name.startswith("p_")) == pytest.approx(1)


def test_an_experiment_of_a_server_is_refused_with_the_remedy(tmp_path: Path, project: Path):
    store = f"sqlite:///{tmp_path}/other.db"
    mlflow.MlflowClient(store).create_experiment("remote", artifact_location="mlflow-artifacts:/1")
    refused = ultrasound(project, "train", MLFLOW_TRACKING_URI=store, MLFLOW_EXPERIMENT_NAME="remote", expect=1)
    assert "MLFLOW_TRACKING_URI" in refused.stderr
    assert "Traceback" not in refused.stderr
