"""`tune` through the command line: stopped and continued, joined, failing trials, and what is left at the end."""

import signal
import sys
import time

import mlflow
import optuna
import pandas as pd
import psutil
import pytest
import torch
import yaml
from optuna.trial import TrialState
from safetensors.torch import save_file

from tests.conftest import renewed_results, start_in, ultrasound
from ultrasound.learning import backbone
from ultrasound.tracking import mutex

QUICK = ("--train.epochs", "1", "--tune.folds", "[0, 1]", "--tune.repeats", "1", "--tune.startup_trials", "2")


@pytest.fixture(scope="module")
def folder(prepared, tmp_path_factory):
    """A project of its own, as the searches end with registered versions."""
    return prepared(tmp_path_factory.mktemp("tune") / "project")


def client(folder):
    return mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")


def study(folder, name):
    storage = f"sqlite:///{folder}/build/optuna.db"
    with mutex.held(storage):  # else both may make its tables, this process and the command that has just begun
        return optuna.load_study(study_name=name, storage=storage)


def children(folder, parent, verb):
    return client(folder).search_runs(["0"], f"tags.`mlflow.parentRunId` = '{parent}' AND tags.verb = '{verb}'")


def start(folder, *options):
    return start_in(folder, sys.executable, "-m", "ultrasound", "tune", *QUICK, *options)


def wait_for(process, condition, seconds=600):
    ends = time.time() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.time() < ends, "it did not come"
        time.sleep(0.2)


def complete(folder, name):
    try:
        return len([t for t in study(folder, name).trials if t.state == TrialState.COMPLETE])
    except Exception:  # neither file nor table nor study is there yet
        return 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_search_that_is_stopped_goes_on_in_the_same_run_and_loses_nothing(folder, number, code):
    name = f"stopped-{number.name}"
    options = ("--tune.study", name, "--tune.trials", "4", "--tune.repeats", "0")
    first = start(folder, *options)
    wait_for(first, lambda: complete(folder, name) >= 1)
    first.send_signal(number)
    said = first.communicate(timeout=600)
    assert first.returncode == code, said
    before = study(folder, name)
    kept = {t.number: t.value for t in before.trials if t.state == TrialState.COMPLETE}
    again = ultrasound(folder, "tune", *QUICK, *options).stdout
    after = study(folder, name)
    assert before.user_attrs["parent_run"] == after.user_attrs["parent_run"]
    assert after.user_attrs["parent_run"] in again
    finished = {t.number: t.value for t in after.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)}
    assert len(finished) == 4
    assert kept.items() <= finished.items()
    stopped = [t for t in after.trials if t.state == TrialState.FAIL]
    assert len(stopped) <= 1
    for trial in stopped:
        assert any(trial.number in t.system_attrs.get("retry_history", []) for t in after.trials)
    everything = client(folder).search_runs(["0"])
    assert "RUNNING" not in {run.info.status for run in everything}
    done = ultrasound(folder, "tune", *QUICK, *options).stdout
    assert f"study {name} holds its 4 trials already" in done
    assert len(client(folder).search_runs(["0"])) == len(everything)  # it starts no run to say so


def test_a_trial_that_is_killed_goes_on_after_its_last_epoch(folder):
    options = ("--tune.study", "long", "--tune.trials", "1", "--tune.repeats", "0", "--tune.folds", "[0]",
               "--train.epochs", "60", "--train.choose", "last")  # fmt: skip

    def epochs():
        parent = study(folder, "long").user_attrs["parent_run"]
        return {
            run.data.tags["trial"]: client(folder).get_metric_history(run.info.run_id, "train/images_per_second")
            for run in children(folder, parent, "trial")
        }

    def is_under_way():
        try:
            return len(epochs()["0"]) > 9
        except Exception:  # no study, no run yet
            return False

    first = start(folder, *options)
    wait_for(first, is_under_way)
    first.kill()
    first.communicate()
    ultrasound(folder, "tune", *QUICK, *options)
    killed, again = (sorted(epochs()[number], key=lambda point: point.step) for number in "01")
    assert [point.step for point in again] == list(range(1, 61))
    kept = len(killed) - 1  # at most one epoch is lost; the speed of an epoch is never the same twice
    assert [point.value for point in again][:kept] == [point.value for point in killed][:kept]
    assert not list((folder / "build/checkpoints").glob("*/trial-*"))


def test_the_workers_of_a_command_that_is_killed_end_too(folder):
    options = ("--tune.study", "orphans", "--tune.trials", "3", "--tune.workers", "2", "--tune.folds", "[0]",
               "--train.epochs", "400", "--train.choose", "last", "--tune.prune_epochs", "none")  # fmt: skip
    first = start(folder, *options)
    worker = psutil.Process(first.pid)

    def is_at_work():
        try:
            return sum("run_id" in trial.user_attrs for trial in study(folder, "orphans").trials) == 2
        except Exception:  # there is no study yet
            return False

    wait_for(first, is_at_work)
    others = worker.children(recursive=True)
    assert others
    first.kill()
    first.communicate()
    _, alive = psutil.wait_procs(others, timeout=60)
    assert not alive
    found = children(folder, study(folder, "orphans").user_attrs["parent_run"], "trial")
    # The worker has closed its run; that of the killed process waits for the next start.
    assert sorted(run.info.status for run in found) == ["KILLED", "RUNNING"]


def test_of_two_commands_one_joins_the_other(folder):
    # Four trials so long that the second process of each command is there before the first ones end.
    options = ("--tune.study", "joined", "--tune.trials", "4", "--tune.workers", "2", "--tune.repeats", "0",
               "--train.epochs", "80", "--train.choose", "last", "--tune.folds", "[0]",
               "--tune.prune_epochs", "none")  # fmt: skip
    both = [start(folder, *options) for _ in range(2)]
    said = [process.communicate(timeout=1200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    parent = study(folder, "joined").user_attrs["parent_run"]
    assert sorted(f"run {parent}, held by another process" in words for words, _ in said) == [False, True]
    found = children(folder, parent, "trial")
    assert len(found) == 4
    assert len({run.data.tags["process"] for run in found}) >= 3  # of four; on a busy machine one comes late
    assert client(folder).get_run(parent).info.status == "FINISHED"


def test_what_a_finished_search_leaves(folder):
    options = ("--tune.study", "whole", "--tune.trials", "5", "--register.name", "tuned")
    said = ultrasound(folder, "tune", *QUICK, *options).stdout
    found = study(folder, "whole")
    assert found.trials[0].user_attrs["origin"] == "params.yaml, but for model.head_width, outside tune.space"
    assert found.trials[0].params["train.learning_rate"] == 0.001
    parent = client(folder).get_run(found.user_attrs["parent_run"])
    artifacts = {file.path for file in client(folder).list_artifacts(parent.info.run_id, "figures")}
    names = ("history", "parallel_coordinates", "slices", "intermediate_values")
    assert {f"figures/{name}.png" for name in names} | {"figures/search.html"} <= artifacts
    page = mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/figures/search.html")
    assert "Plotly.newPlot" in page
    assert 'src="http' not in page  # it opens without a network
    trials = pd.read_csv(client(folder).download_artifacts(parent.info.run_id, "tables/trials.csv"))
    assert trials["trial"].tolist() == list(range(5))
    best = yaml.safe_load(mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/best_params.yaml"))
    assert best["train"]["learning_rate"] == found.best_params["train.learning_rate"]
    for run in children(folder, parent.info.run_id, "trial"):
        number = int(run.data.tags["trial"])
        trial = found.trials[number]
        assert run.data.tags["trial_state"] == trial.state.name.lower()
        assert float(run.data.params["train.learning_rate"]) == trial.params["train.learning_rate"]
        if trial.state == TrialState.COMPLETE:
            assert run.data.metrics["out_of_fold/macro_f1"] == pytest.approx(trial.value)
            by_fold = client(folder).get_metric_history(run.info.run_id, "folds/macro_f1")
            assert [point.step for point in by_fold] == [0, 1]
    (again,) = children(folder, parent.info.run_id, "best")
    (before,) = children(folder, parent.info.run_id, "defaults")
    assert before.data.params["train.learning_rate"] == "0.001"
    assert before.data.params["model.head_width"] == "16"  # which the space does not hold
    scores = [run.data.metrics["out_of_fold/macro_f1"] for run in (before, again)]
    gain = parent.data.metrics
    assert gain["gain/macro_f1"] == pytest.approx(scores[1] - scores[0])
    assert gain["gain/macro_f1_low"] <= gain["gain/macro_f1"] <= gain["gain/macro_f1_high"]
    assert f"gain over params.yaml: macro_f1 {gain['gain/macro_f1']:+.3f}" in said
    version = client(folder).get_model_version_by_alias("tuned", "champion")
    assert version.tags["run_id"] == again.info.run_id
    assert "tuned version 1: Champion" in said
    assert len(children(folder, parent.info.run_id, "evaluate")) == 1
    _the_document_says_the_same(folder, parent, found, scores)


def _the_document_says_the_same(folder, parent, found, scores):
    text = renewed_results(folder, "search", parent.info.run_id)
    assert f"The best, trial {found.best_trial.number}, had macro-F1 {found.best_value:.3f} out of fold" in text
    assert f"as it stands {found.trials[0].value:.3f}." in text
    for name, score in zip(("params.yaml", "best parameters"), scores, strict=True):
        assert f"| {name} | {score:.3f} |" in text
    gain = [parent.data.metrics[f"gain/macro_auc{end}"] for end in ("", "_low", "_high")]
    assert "| AUC, mean of classes | {:+.3f} ({:+.3f} to {:+.3f}) |".format(*gain) in text
    assert "64 x 64 pixels; folds: [0, 1] of 3, 1 epochs each" in text
    assert (folder / "docs/screenshots/search-history.png").stat().st_size > 10_000


def test_a_finished_study_of_which_more_trials_are_asked_goes_on_in_a_run_of_its_own(folder):
    space = "{train.learning_rate: {low: 0.000001, high: 0.001, log: true}}"
    options = ("--tune.study", "longer", "--tune.offer", "False", "--tune.space", space)
    said = ultrasound(folder, "tune", *QUICK, *options, "--tune.trials", "1").stdout
    assert "nothing better than params.yaml was found" in said
    first = study(folder, "longer").user_attrs["parent_run"]
    ultrasound(folder, "tune", *QUICK, *options, "--tune.trials", "3")
    found = study(folder, "longer")
    second = client(folder).get_run(found.user_attrs["parent_run"])
    assert second.data.tags["continues"] == first
    assert [len(children(folder, parent, "trial")) for parent in (first, second.info.run_id)] == [1, 2]
    assert second.data.params["tune.trials"] == "3"
    complete = [trial for trial in found.trials if trial.state == TrialState.COMPLETE]
    best = max(complete, key=lambda trial: trial.value)
    assert second.data.tags["best_trial"] == f"trial-{best.number:03d}"


def test_a_trial_that_fails_by_itself_fails_alone(folder):
    network = backbone.create("test_resnet", "none", 3, 16, 0.1).backbone.state_dict()
    broken = {name: torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor
              for name, tensor in network.items()}  # fmt: skip
    save_file(broken, folder / "broken.safetensors")
    made = optuna.create_study(study_name="diverging", storage=f"sqlite:///{folder}/build/optuna.db",
                               direction="maximize")  # fmt: skip
    for weights in ("none", "broken.safetensors", "none"):
        made.enqueue_trial({"model.weights": weights})
    options = ("--tune.study", "diverging", "--tune.trials", "3", "--tune.repeats", "0", "--tune.space",
               "{model.weights: {choices: [none, broken.safetensors]}}")  # fmt: skip
    ultrasound(folder, "tune", *QUICK, *options)
    found = study(folder, "diverging")
    assert [trial.state.name for trial in found.trials[:3]] == ["COMPLETE", "FAIL", "COMPLETE"]
    runs = {run.data.tags["trial"]: run for run in children(folder, found.user_attrs["parent_run"], "trial")}
    assert runs["1"].info.status == "FAILED"
    assert runs["1"].data.tags["trial_state"] == "failed"
    assert "nan in epoch 1, batch 1" in runs["1"].data.tags["trial_reason"]
    assert {runs[number].info.status for number in "02"} == {"FINISHED"}
    assert len(found.trials) == 4  # the one of params.yaml waits: three were asked for


def test_a_study_whose_trials_all_fail_ends_and_says_so(folder):
    made = optuna.create_study(study_name="failing", storage=f"sqlite:///{folder}/build/optuna.db",
                               direction="maximize")  # fmt: skip
    for _ in range(2):
        made.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"failure": "of itself"}))
    refused = ultrasound(folder, "tune", *QUICK, "--tune.study", "failing", "--tune.trials", "2", expect=1)
    assert "no trial came to an end" in refused.stderr


def test_a_study_that_was_begun_otherwise_is_refused(folder):
    options = ("--tune.study", "other", "--tune.trials", "1", "--tune.repeats", "0")
    ultrasound(folder, "tune", *QUICK, *options)
    refused = ultrasound(folder, "tune", *QUICK, *options, "--train.clip", "1", expect=1)
    assert "begun with other values of train.clip: choose a new tune.study" in refused.stderr
    ultrasound(folder, "tune", *QUICK, *options, "--train.device", "cpu")


def test_a_database_that_does_not_answer_is_one_sentence_without_the_password(folder):
    address = "postgresql://me:secret@127.0.0.1:9/none"
    refused = ultrasound(folder, "tune", *QUICK, expect=1, TUNE_STORAGE=address)
    assert "127.0.0.1:9" in refused.stderr
    assert "does not answer" in refused.stderr
    assert "secret" not in refused.stderr + refused.stdout
    assert "Traceback" not in refused.stderr
