"""Two clones as two machines: one MLflow server with users on PostgreSQL, one study, and what either may see."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import mlflow
import optuna
import psycopg
import pytest
from mlflow.server import get_app_client
from optuna.trial import TrialState

from tests.conftest import environment, start_in
from tests.search import databases

QUICK = ("--train.epochs", "1", "--tune.folds", "[0]", "--tune.repeats", "1", "--tune.startup_trials", "2",
         "--tune.trials", "4", "--tune.study", "team")  # fmt: skip
ADMIN, USER = ("admin", "a-long-password-of-tests"), ("me", "another-password-of-tests")


@contextlib.contextmanager
def tracking_server(folder, database):
    """`mlflow server` as docs/scaling.md says; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "users.ini").write_text(
        f"[mlflow]\ndefault_permission = EDIT\ndatabase_uri = sqlite:///{folder}/users.db\n"
        f"admin_username = {ADMIN[0]}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"
    )
    settings = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "of-tests", "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
                "MLFLOW_AUTH_CONFIG_PATH": str(folder / "users.ini"),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # fmt: skip
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            ["mlflow", "server", "--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts"),
             "--app-name", "basic-auth", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
             "--allowed-hosts", f"127.0.0.1:{port}"],
            cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env=environment(**settings),
        )  # fmt: skip
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
                assert process.poll() is None, (folder / "server.log").read_text()
                time.sleep(1)
            else:
                pytest.fail(f"the server did not come: {(folder / 'server.log').read_text()}")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def team(prepared, tmp_path_factory):
    """Server, database of the study, and two prepared clones."""
    folder = tmp_path_factory.mktemp("team")
    with databases.postgresql(folder) as address:
        with psycopg.connect(address, autocommit=True) as connection:
            for name in ("mlflow", "optuna"):
                connection.execute(f"CREATE DATABASE {name}")
        of_server, of_study = (address.removesuffix("/postgres") + f"/{name}" for name in ("mlflow", "optuna"))
        with tracking_server(folder, of_server) as server:
            yield server, of_study, [prepared(folder / name) for name in ("one", "two")]


def surroundings(server, storage, user):
    name, password = user
    return {"MLFLOW_TRACKING_URI": server, "TUNE_STORAGE": storage, "MLFLOW_TRACKING_USERNAME": name,
            "MLFLOW_TRACKING_PASSWORD": password}  # fmt: skip


def test_two_people_search_together_on_two_machines(team, monkeypatch):
    server, storage, clones = team
    for name, value in surroundings(server, storage, ADMIN).items():
        monkeypatch.setenv(name, value)
    get_app_client("basic-auth", server).create_user(*USER)
    started = [
        start_in(clone, sys.executable, "-m", "ultrasound", "tune", *QUICK, **surroundings(server, storage, user))
        for clone, user in zip(clones, (ADMIN, USER), strict=True)
    ]
    said = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "of-tests" not in str(said)
    assert not any(password in str(said) for password in ("secret", ADMIN[1], USER[1]))
    found = optuna.load_study(study_name="team", storage=storage)
    assert len([t for t in found.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]) == 4
    assert sum("held by another process" in out for out, _ in said) == 1
    client = mlflow.MlflowClient(server)
    parent = client.get_run(found.user_attrs["parent_run"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' AND tags.verb = 'trial'"
    )
    assert len(children) == 4
    assert len({run.data.tags["process"] for run in children}) == 2  # both had some of the work
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert "figures/search.html" in {file.path for file in client.list_artifacts(parent.info.run_id, "figures")}
    assert client.get_model_version_by_alias("breast-ultrasound", "champion")
    assert not any("secret" in str(run.data.params) + str(run.data.tags) for run in (parent, *children))


def test_strangers_and_other_names_are_refused(team):
    server, _, _ = team

    def status(**headers):
        request = urllib.request.Request(f"{server}/api/2.0/mlflow/experiments/get?experiment_id=0", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert status() == 401
    assert status(Host="evil.example") == 403
