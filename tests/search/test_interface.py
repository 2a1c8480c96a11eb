"""What a search looks like in the MLflow UI, in a real browser."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import mlflow
import pytest

from tests.conftest import environment, run_in

WIDE = {"width": 1600, "height": 900}
SCREENSHOTS = os.environ.get("SCREENSHOTS")  # a folder to keep what was seen


@pytest.fixture(scope="module")
def searched(prepared, tmp_path_factory):
    """A project of which `mlflow run . -e tune` has made a version."""
    folder = prepared(tmp_path_factory.mktemp("interface") / "project")
    given = ("train.epochs=4", "tune.trials=4", "tune.folds=[0, 1]", "tune.repeats=1", "tune.prune_epochs=none",
             "tune.prune_folds=0")  # fmt: skip
    parameters = [word for each in given for word in ("-P", each)]
    run_in(folder, "mlflow", "run", ".", "-e", "tune", "--env-manager", "local", *parameters)
    return folder


@pytest.fixture(scope="module")
def address(searched):
    """`mlflow ui` on the project, started as `make ui` starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["mlflow", "ui", "--workers", "1", "--no-serve-artifacts", "--port", str(port)]
    log = searched / "build/ui.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, cwd=searched, env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"), stdout=output,
            stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(1200):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
        else:
            pytest.fail(f"the interface did not come: {log.read_text()}")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def tab(browser):
    context = browser.new_context(viewport=WIDE, reduced_motion="reduce")
    context.set_default_timeout(180_000)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def parent(searched):
    (run,) = mlflow.MlflowClient(f"sqlite:///{searched}/mlflow.db").search_runs(["0"], "tags.verb = 'tune'")
    return run


def keep(tab, name):
    if SCREENSHOTS:
        tab.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def row(tab, name):
    return tab.locator(".ag-row", has=tab.get_by_text(name, exact=True)).first


def test_trials_stand_under_their_search_and_are_compared_by_parallel_coordinates(tab, address, parent):
    tab.goto(f"{address}/#/experiments/0?workflowType=machine_learning")
    tab.get_by_role("button", name="Close").click()  # of MLflow's assistant
    tab.get_by_text("tune-test_resnet").wait_for()
    assert not tab.get_by_text("trial-000").count()  # folded under the search
    row(tab, "tune-test_resnet").locator("button").first.click()
    tab.get_by_text("trial-003").first.wait_for()
    assert tab.get_by_text("-seed-1").count()
    keep(tab, "search")
    for number in range(4):
        row(tab, f"trial-00{number}").locator(".ag-selection-checkbox input").check()
    tab.get_by_role("button", name="Compare").click()
    tab.get_by_text("Comparing 4 Runs from 1 Experiment").wait_for()
    axes = tab.locator(".js-plotly-plot .axis-title")
    axes.last.wait_for()
    shown = axes.all_text_contents()  # SVG has no inner text
    assert shown[-1] == "validation/macro_f1"
    assert {"train.learning_rate", "model.dropout"} <= set(shown)  # of those that differ, the first three
    keep(tab, "compare")


def test_the_search_shows_its_best_and_opens_optunas_figures(tab, address, parent):
    tab.goto(f"{address}/#/experiments/0/runs/{parent.info.run_id}")
    tab.get_by_text("best_trial").first.wait_for()
    assert tab.get_by_text(parent.data.tags["best_trial"]).count()
    assert tab.get_by_text("best.train.learning_rate").count()
    tab.goto(f"{address}/#/experiments/0/runs/{parent.info.run_id}/artifacts/figures/search.html")
    figures = tab.frame_locator("iframe").locator(".js-plotly-plot")
    figures.nth(4).wait_for()  # history, importances, parallel coordinates, slices, intermediate values
    keep(tab, "figures")


def test_the_registered_version_names_its_run_and_says_what_it_is_not(tab, address, parent):
    tab.goto(f"{address}/#/models/breast-ultrasound/versions/1")
    tab.get_by_text("champion").first.wait_for()
    assert tab.get_by_text("macro-F1 on the test set").count()
    assert tab.get_by_text("not a medical device").count()
    tab.get_by_role("link", name="-seed-1").click()
    tab.get_by_text("train.learning_rate").first.wait_for()
    keep(tab, "version")
