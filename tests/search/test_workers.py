"""Workers that share a study: exactly the trials that were asked for, whoever starts when and whoever dies."""

import re
import signal
import sys
import time
from datetime import datetime

import mlflow
import optuna
import pytest
from optuna.trial import TrialState

from tests.conftest import PROJECT, start_in, tracking_store
from tests.search import databases
from ultrasound.params import load
from ultrasound.search import study


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request, tmp_path):
    """The address of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/build/study.db"
    else:
        with databases.postgresql(tmp_path) as address:
            yield address


def start(folder, storage, count, seconds, *machine):
    folder.mkdir(exist_ok=True)
    store = f"sqlite:///{folder}/mlflow.db"
    command = (sys.executable, "-m", "tests.search.trivial", str(count), str(seconds), *machine)
    return start_in(folder, *command, MLFLOW_TRACKING_URI=store, TUNE_STORAGE=storage)


def children(folder):
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return client.search_runs(["0"], "tags.verb = 'trial'", max_results=1000)


def test_four_that_start_at_once_on_an_empty_folder_run_a_hundred_trials_together(tmp_path, storage):
    folder = tmp_path / "project"
    started = [start(folder, storage, 100, 0.05) for _ in range(4)]
    said = [process.communicate(600)[0] for process in started]
    assert [process.returncode for process in started] == [0] * 4, said
    roles = [words.splitlines() for words in said]
    first = [next(line for line in lines if line.startswith(("holder", "worker"))).split() for lines in roles]
    assert sorted(role for role, _ in first) == ["holder", "worker", "worker", "worker"]
    assert len({parent for _, parent in first}) == 1
    assert all(any(line.startswith("trial") for line in lines) for lines in roles)  # each had some of the work
    trials = optuna.load_study(study_name="breast-ultrasound", storage=storage).trials
    assert [trial.number for trial in trials] == list(range(100))
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    found = children(folder)
    assert sorted(int(run.data.tags["trial"]) for run in found) == list(range(100))
    assert {run.info.status for run in found} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in found} == {first[0][1]}


@pytest.mark.parametrize(
    ("number", "machines"),
    [(signal.SIGKILL, [[], [], []]), (signal.SIGKILL, [["one"], ["two"], ["three"]]), (signal.SIGTERM, [[], [], []])],
    ids=["killed", "killed on another machine", "stopped"],
)
def test_the_trial_of_a_worker_that_dies_is_tried_again_and_its_run_closed(tmp_path, storage, number, machines):
    folder = tmp_path / "project"
    processes = [start(folder, storage, 12, 1.0, *machine) for machine in machines]
    while not (begun := re.findall(r"^trial (\d+)$", processes[1].output.read_text(), re.MULTILINE)):
        assert processes[1].poll() is None, processes[1].communicate()
        time.sleep(0.01)
    mine = int(begun[0])
    time.sleep(0.3)
    processes[1].send_signal(number)
    processes[1].wait()
    died = datetime.now()
    for process in (processes[0], processes[2]):
        assert process.wait(600) == 0, process.communicate()
    trials = optuna.load_study(study_name="breast-ultrasound", storage=storage).trials
    by_state = {state: [t for t in trials if t.state == state] for state in TrialState}
    assert len(by_state[TrialState.COMPLETE]) == 12
    assert [trial.number for trial in by_state[TrialState.FAIL]] == [mine]
    assert not by_state[TrialState.RUNNING]
    assert not by_state[TrialState.WAITING]
    (again,) = [trial for trial in trials if mine in trial.system_attrs.get("retry_history", [])]
    assert again.params["x"] == trials[mine].params["x"]
    waited = (again.datetime_start - died).total_seconds()
    assert waited < 3 + 1 + 6  # three heartbeats of silence, a trial of another, and what a loaded machine adds
    if machines[0]:
        assert waited > 1  # nobody can know sooner
    status = {int(run.data.tags["trial"]): run.info.status for run in children(folder)}
    assert status.pop(mine) == "KILLED"
    assert set(status.values()) == {"FINISHED"}


def test_a_trial_that_optuna_itself_finds_silent_has_its_run_closed(tmp_path):
    chosen = load({"tune.heartbeat": 1, "tune.storage": f"sqlite:///{tmp_path}/study.db"}, PROJECT / "params.yaml")
    with tracking_store(tmp_path):
        found = study.open_study(chosen, {})
        silent = found.ask()
        run = mlflow.MlflowClient().create_run("0")
        silent.set_user_attr(study.PROCESS, "another-machine 1 1.00")
        silent.set_user_attr(study.RUN, run.info.run_id)
        found._storage.record_heartbeat(silent._trial_id)
        time.sleep(study.GRACE + 1.5)
        found.optimize(lambda trial: 1.0, n_trials=1)  # looks for silent trials before its own
        assert mlflow.get_run(run.info.run_id).info.status == "KILLED"
    states = [trial.state for trial in found.trials]
    assert states[0] == TrialState.FAIL and states[1] == TrialState.COMPLETE
