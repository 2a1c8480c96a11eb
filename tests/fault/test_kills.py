"""Trainings that are killed, stopped or run out of disk: nothing is lost but an epoch, and no run stays open."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.conftest import environment, start_in, ultrasound
from tests.tracking.test_workflow import as_options, client, mlflow_run, runs
from ultrasound.learning import backbone

KILLS = 20
LONG = ("train.epochs=140", "train.ema=0.9", "train.freeze=2", "train.patience=140")
SLOW = ("train.epochs=40", "train.patience=40")


@pytest.fixture(scope="module")
def other(project, tmp_path_factory):
    """A copy of the project with a store of its own."""
    folder = tmp_path_factory.mktemp("killed") / "project"
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns("mlruns", "mlflow.db", "checkpoints"))
    return folder


def losses(project, run, metric):
    found = client(project).get_metric_history(run.info.run_id, metric)
    return {point.step: point.value for point in found}, len(found)


def newest(project, run_id):
    """Epoch of the newest checkpoint, by its name."""
    files = (project / "build/checkpoints" / run_id).glob("fold/epoch-*.pt")
    return max((int(file.stem.partition("-")[2]) for file in files), default=0)


def saved_epoch(project, run_id):
    """The same of a run that has ended, and that each checkpoint is whole."""
    for file in (project / "build/checkpoints" / run_id).glob("fold/epoch-*.pt"):
        assert file.name == f"epoch-{torch.load(file, weights_only=True)['numbers']['epoch']:05d}.pt"
    return newest(project, run_id)


def test_twenty_kills_lose_an_epoch_each_at_most_and_change_nothing(other: Path):
    options = as_options(LONG)
    ultrasound(other, "train", *options, new=True)
    undisturbed = runs(other, "train")[0]
    random.seed(0)
    lost, saved, run = [], 0, undisturbed
    for kill in range(KILLS):
        process = start_in(other, sys.executable, "-m", "ultrasound", "train", *options)
        if kill:  # anywhere: before the first step, in an epoch, while a checkpoint is written
            wanted = saved + random.randint(0, 2)
            while newest(other, run.info.run_id) < wanted:
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
        while len(runs(other, "train")) < 2:  # until there is a run to be killed
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        time.sleep(random.uniform(0, 0.2) if kill else 1)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        run = runs(other, "train")[1]
        logged = max(losses(other, run, "train/loss")[0], default=0)
        saved = saved_epoch(other, run.info.run_id)
        lost.append(logged - saved)
    ultrasound(other, "train", *options)
    assert max(lost) <= 1, lost
    assert len(runs(other, "train")) == 2  # one run, however often it was killed
    killed = runs(other, "train")[1]
    assert killed.info.status == "FINISHED"
    assert "failure" not in killed.data.tags
    for metric in ("train/loss", "validation/loss"):
        (expected, _), (found, count) = (losses(other, run, metric) for run in (undisturbed, killed))
        assert found.keys() == expected.keys()
        assert max(abs(found[epoch] - expected[epoch]) for epoch in expected) <= 1e-6
        assert count <= len(found) + KILLS
    assert killed.data.metrics["best/macro_f1"] == undisturbed.data.metrics["best/macro_f1"]
    assert not list((other / "build/checkpoints").iterdir())
    assert not client(other).search_runs(["0"], "attributes.status = 'RUNNING'")


def started(project, *arguments):
    """Start a training in the background and wait until it has saved an epoch."""
    name = arguments[0]
    before = {run.info.run_id for run in runs(project, name)}
    process = start_in(project, sys.executable, "-m", "ultrasound", *arguments)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for run in runs(project, name):
            if run.info.run_id not in before and list(
                (project / "build/checkpoints").glob(f"{run.info.run_id}/*/e*.pt")
            ):
                return process, run.info.run_id
        time.sleep(0.1)
    raise AssertionError(process.communicate(timeout=10))


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "stopped by Ctrl-C")],
)
def test_a_stopped_training_closes_its_run_and_the_same_command_continues_it(other: Path, number, code, word):
    options = as_options((*SLOW, f"train.seed={code}"))
    process, run_id = started(other, "train", *options)
    process.send_signal(number)
    time.sleep(0.2)
    process.terminate()  # as `mlflow run` does on Ctrl-C; it must not disturb the end
    _, errors = process.communicate(timeout=600)
    assert process.returncode == code
    assert errors.strip().endswith(word)
    assert "Traceback" not in errors
    stopped = client(other).get_run(run_id)
    assert stopped.info.status == "KILLED"
    assert stopped.data.tags["failure"] == word
    saved = saved_epoch(other, run_id)
    assert 1 <= saved < 40
    output = ultrasound(other, "train", *options).stdout
    assert f"continuing run {run_id}" in output
    assert client(other).get_run(run_id).info.status == "FINISHED"
    assert list(losses(other, stopped, "train/loss")[0]) == list(range(1, 41))
    anew = ultrasound(other, "train", *as_options((*SLOW[1:], "train.epochs=1", f"train.seed={code}"))).stdout
    assert "continuing" not in anew


def test_mlflow_run_continues_the_run_that_was_killed_and_leaves_a_signpost(other: Path):
    options = (*SLOW, "train.seed=7")
    process, run_id = started(other, "train", *as_options(options))
    process.kill()
    process.communicate()
    assert client(other).get_run(run_id).info.status == "RUNNING"  # nobody could tell
    before = {run.info.run_id for run in client(other).search_runs(["0"])}
    mlflow_run(other, "train", *options)
    assert client(other).get_run(run_id).info.status == "FINISHED"
    (signpost,) = [run for run in client(other).search_runs(["0"]) if run.info.run_id not in before]
    assert signpost.data.tags["continued_run"] == run_id
    assert signpost.info.status == "FINISHED"
    assert not signpost.data.metrics


def test_a_signpost_whose_processes_were_killed_is_closed_at_the_next_start(other: Path):
    options = (*SLOW, "train.seed=14")
    process, run_id = started(other, "train", *as_options(options))
    process.kill()
    process.communicate()
    before = {run.info.run_id for run in client(other).search_runs(["0"])}
    given = [part for option in options for part in ("-P", option)]
    both = subprocess.Popen(
        ["mlflow", "run", ".", "-e", "train", "--env-manager", "local", *given], cwd=other, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip

    def signpost():
        return next((run for run in client(other).search_runs(["0"])
                     if run.info.run_id not in before and "continued_run" in run.data.tags), None)  # fmt: skip

    deadline = time.monotonic() + 600
    while signpost() is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(both.pid, signal.SIGKILL)
    both.wait()
    assert signpost().info.status == "RUNNING"
    ultrasound(other, "train", *as_options(options))
    assert signpost().info.status == "KILLED"
    assert client(other).get_run(run_id).info.status == "FINISHED"


def test_dead_runs_are_closed_at_the_next_start_and_live_ones_are_not(other: Path):
    process, dead = started(other, "train", *as_options((*SLOW, "train.seed=8")))
    process.kill()
    process.communicate()
    alive, running = started(other, "train", *as_options((*SLOW, "train.seed=9")))
    try:
        closed = client(other).get_run(dead)
        assert closed.info.status == "KILLED"
        assert "its process was gone" in closed.data.tags["failure"]
        # The same command beside the one that runs makes a run of its own and disturbs nothing.
        second = ultrasound(other, "train", *as_options((*SLOW, "train.seed=9"))).stdout
        assert "continuing" not in second
        assert client(other).get_run(running).info.status in ("RUNNING", "FINISHED")
    finally:
        alive.communicate(timeout=120)
    assert alive.returncode == 0
    assert client(other).get_run(running).info.status == "FINISHED"


def test_a_loss_that_is_not_finite_fails_the_run_with_epoch_batch_and_rate(other: Path):
    weights = backbone.create("test_resnet", "none", 3, 16, 0.0).backbone.state_dict()
    weights["conv1.0.weight"][:] = float("nan")
    torch.save(weights, other / "build/broken.pth")
    failed = ultrasound(other, "train", "--model.weights", "build/broken.pth", expect=1)
    told = "the loss is nan in epoch 1, batch 1, at learning rate"
    assert told in failed.stderr and "Traceback" not in failed.stderr
    run = runs(other, "train")[-1]
    assert run.info.status == "FAILED"
    assert told in run.data.tags["failure"]


def test_without_resume_a_killed_run_is_left_as_it_is(other: Path):
    options = as_options((*SLOW, "train.seed=10"))
    process, run_id = started(other, "train", *options)
    process.kill()
    process.communicate()
    output = ultrasound(other, "train", *options, "--train.resume", "false").stdout
    assert "continuing" not in output
    assert client(other).get_run(run_id).info.status == "KILLED"


def test_folds_that_are_done_are_not_trained_again(other: Path):
    options = as_options(("train.epochs=12", "train.patience=12", "train.folds=all", "train.seed=11"))
    process, parent = started(other, "train", *options)
    deadline = time.monotonic() + 120
    while not list((other / "build/checkpoints" / parent / "fold-1").glob("e*.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    process.communicate()
    family = [client(other).get_run(parent), *(run for run in runs(other, "fold") if run.info.status != "FINISHED")]
    assert [run.info.status for run in family] == ["KILLED", "KILLED"]
    ultrasound(other, "train", *options)
    children = [run for run in runs(other, "fold") if run.data.tags["mlflow.parentRunId"] == parent]
    assert sorted(run.info.run_name for run in children) == ["fold-0", "fold-1", "fold-2"]
    assert {run.info.status for run in children} == {"FINISHED"}
    first = next(run for run in children if run.info.run_name == "fold-0")
    assert losses(other, first, "train/loss")[1] == 12  # each epoch logged once
    whole = client(other).get_run(parent)
    assert whole.info.status == "FINISHED"
    ultrasound(other, "train", *options)
    again = runs(other, "train")[-1]
    assert again.info.run_id != parent
    for metric in ("best/macro_f1", "out_of_fold/log_loss", "folds/macro_auc_mean"):
        assert again.data.metrics[metric] == pytest.approx(whole.data.metrics[metric], abs=1e-6)


def test_a_segmenter_that_is_killed_between_folds_outlines_as_an_undisturbed_one(other: Path):
    options = as_options(("train.epochs=6", "train.folds=[0, 1]", "train.seed=13", "segment.width=16"))
    process, parent = started(other, "segment", *options)
    deadline = time.monotonic() + 120
    while not list((other / "build/checkpoints" / parent / "fold-1").glob("e*.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert f"continuing run {parent}" in ultrasound(other, "segment", *options).stdout
    ultrasound(other, "segment", *options)
    continued, undisturbed = (run for run in runs(other, "segment") if run.data.params["train.seed"] == "13")
    assert continued.info.run_id == parent and continued.info.status == "FINISHED"
    tables = [pd.read_csv(client(other).download_artifacts(run.info.run_id, "tables/outlines_out_of_fold.csv"))
              for run in (continued, undisturbed)]  # fmt: skip
    pd.testing.assert_frame_equal(*tables)
    rules = [
        client(other).download_artifacts(run.info.run_id, "rules_of_folds.json") for run in (continued, undisturbed)
    ]
    assert Path(rules[0]).read_text() == Path(rules[1]).read_text()


def test_a_training_on_a_full_disk_fails_clearly_and_goes_on_when_there_is_room(other: Path, tmp_path: Path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    checkpoints, options = other / "build/checkpoints", as_options((*SLOW, "train.seed=12"))
    shutil.rmtree(checkpoints, ignore_errors=True)
    checkpoints.symlink_to(small)
    try:
        before = len(runs(other, "train"))
        process, run_id = started(other, "train", *options)
        filler = os.open(small / "filler", os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while os.write(filler, bytes(4096)):  # until nothing is left for the next epoch
                pass
        os.close(filler)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 1
        assert "cannot be written to build/checkpoints" in errors and "No space left on device" in errors
        assert "Traceback" not in errors
        failed = client(other).get_run(run_id)
        assert failed.info.status == "FAILED"
        assert "No space left" in failed.data.tags["failure"]
        assert saved_epoch(other, run_id) >= 1
        (small / "filler").unlink()
        ultrasound(other, "train", *options)
        assert client(other).get_run(run_id).info.status == "FINISHED"
        assert len(runs(other, "train")) == before + 1
    finally:
        checkpoints.unlink()
        subprocess.run(["umount", "-l", str(small)], check=True)
