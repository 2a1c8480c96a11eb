import sys

import mlflow

from tests.conftest import PROJECT, run_in
from tests.tracking import interrupted


def test_whenever_a_run_is_interrupted_it_ends_as_killed_and_its_store_is_not_left_locked(tmp_path):
    path = f"{PROJECT / 'src'}:{PROJECT}"
    run_in(tmp_path, sys.executable, "-m", "tests.tracking.interrupted", PYTHONPATH=path)
    found = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["0"], max_results=1000)
    assert [run.info.status for run in found if run.data.tags["verb"] == "train"] == ["KILLED"] * interrupted.TIMES
    after = [run for run in found if run.data.tags["verb"] == "after"]
    assert [run.info.status for run in after] == ["FINISHED"] * interrupted.TIMES
    # A store that is left locked costs the 20 s that MLflow waits for it.
    assert max(run.data.metrics["after/seconds"] for run in after) < 15
