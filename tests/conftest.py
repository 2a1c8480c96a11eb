"""A copy of the project with phantoms, prepared by the real `dvc repro`, for the tests that run the real tools."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from hypothesis import settings

from tests import forked

settings.load_profile("ci")  # the same examples every time, however slow the machine is

PROJECT = Path(__file__).parents[1]
ARCHIVE = Path(os.environ.get("BUSI_ARCHIVE", PROJECT.parent / "shared/busi/Dataset_BUSI.zip")).resolve()

# A sliver of params.yaml: every stage and verb runs, in seconds.
SMALL: dict[str, dict[str, Any]] = {
    "data": {"source": "phantom", "count": 84},
    "split": {"folds": 3},
    "preprocess": {"size": 64},
    "model": {"name": "test_resnet", "weights": "none", "head_width": 16},
    # Two epochs are too few for a frozen one, and for an average over many steps.
    "train": {"epochs": 2, "batch_size": 16, "learning_rate": 0.001, "freeze": 0, "ema": 0, "choose": "best"},
    "segment": {"recipe": {}},
    "tune": {"trials": 2, "startup_trials": 1},
    "evaluate": {"resamples": 200, "gallery": 3, "explain": False},
    "register": {"min_sensitivity": 0, "max_ece": 1, "margin": 1},  # what two epochs give is no champion otherwise
}

LONG = (  # files of minutes, the longest first
    "test_demo.py", "test_segmentation.py", "test_workflow.py", "test_evaluating.py", "test_kills.py", "test_tune.py",
    "test_real_images.py", "test_team.py", "test_server.py", "test_page.py", "test_duplicates.py", "test_workers.py",
    "test_leakage.py", "test_interface.py", "test_compare.py", "test_recipes.py", "test_predictions.py", "test_gate.py",
    "test_split.py",
)  # fmt: skip
Run = Callable[..., subprocess.CompletedProcess[str]]


def environment(**extra: str) -> dict[str, str]:
    """The caller's environment without its tracking server and archive, the venv's programs first on the PATH."""
    hidden = ("MLFLOW_", "BUSI_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"PATH": path, "PYTHONPATH": "src", "MLFLOW_DISABLE_TELEMETRY": "true"} | extra


def copy_project(folder: Path, parameters: dict[str, dict[str, Any]]) -> Path:
    """Copy the tracked files to `folder` and lay `parameters` over params.yaml."""
    for name in (
        "src",
        "MLproject",
        "conda.yaml",
        "dvc.yaml",
        "params.yaml",
        "data.dvc",
        "test_set.csv",
        ".dvc",
        ".dvcignore",
    ):
        source = PROJECT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "tmp", "cache", "*.egg-info")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    values = yaml.safe_load((folder / "params.yaml").read_text())
    for section, changes in parameters.items():
        values[section] |= changes
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def run_in(
    folder: Path, *command: str, expect: int | None = 0, timeout: float = 1500, new: bool = False, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`; unless `expect` is None its exit code must be that.

    Args:
        folder: where it runs.
        command: `python -m MODULE ...`, `python SCRIPT ...` and `mlflow ...` come out of a server of tests/forked.py,
            other programs are new processes.
        expect: its exit code.
        timeout: seconds.
        new: a new process for every program, as for what is read at an import.
        extra: variables of its environment.
    """
    if new or not _is_forked(command):
        result = subprocess.run(
            command, cwd=folder, env=environment(**extra), capture_output=True, text=True, timeout=timeout, check=False
        )
    else:
        process = start_in(folder, *command, **extra)
        try:
            output, errors = process.communicate(timeout)
        except BaseException:
            process.kill()
            raise
        result = subprocess.CompletedProcess(command, process.wait(), output, errors)
    if expect is not None:
        assert result.returncode == expect, (
            f"{command} ended with {result.returncode}\n{result.stdout}\n{result.stderr}"
        )
    return result


def start_in(folder: Path, *command: str, **extra: str) -> forked.Process:
    """Begin a command in `folder`, with variables of its environment, out of the server of tests/forked.py."""
    return _server().start(folder, list(command), environment(**extra))


def ultrasound(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m ultrasound ...` in `folder`, as `run_in` would."""
    return run_in(folder, sys.executable, "-m", "ultrasound", *arguments, **options)


@contextlib.contextmanager
def tracking_store(folder: Path) -> Iterator[None]:
    """Let MLflow in this process use the store of a project in `folder`, and afterwards none."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)


def _is_forked(command: tuple[str, ...]) -> bool:
    program, first = command[:2]
    return program == "mlflow" or (program == sys.executable and (first == "-m" or first.endswith(".py")))


@functools.cache
def _server() -> forked.Server:
    server = forked.Server(environment())
    atexit.register(server.close)
    return server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes minutes, so that no process is left with it at the end."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def renewed_results(folder: Path, kind: str, run_id: str) -> str:
    """Let scripts/results.py write the section of a run into a document in `folder`; the section."""
    shutil.copytree(PROJECT / "scripts", folder / "scripts", dirs_exist_ok=True)
    (folder / "docs/screenshots").mkdir(parents=True, exist_ok=True)
    document = folder / "docs/results.md"
    document.write_text(f"# Results\n\n<!-- numbers: {kind} -->\nof last time\n<!-- end -->\n\nBelow.\n")
    run_in(folder, sys.executable, "scripts/results.py", kind, run_id, new=kind == "segment")
    text = document.read_text()
    assert text.startswith(f"# Results\n\n<!-- numbers: {kind} -->\n") and text.endswith("<!-- end -->\n\nBelow.\n")
    assert "of last time" not in text
    return text


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Makes a project with 84 phantoms in a folder: a copy of one that `dvc repro` prepared for all test processes."""
    # With pytest-xdist, the parent of a process's folder is common to all of them.
    shared = tmp_path_factory.getbasetemp()
    common = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "prepared"
    with FileLock(f"{common}.lock"):
        if not common.exists():
            made = copy_project(common.with_suffix(".new"), SMALL)
            run_in(made, "dvc", "repro")
            made.rename(common)
    return lambda folder: Path(shutil.copytree(common, folder, symlinks=True))


@pytest.fixture(scope="session")
def project(prepared: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared project."""
    return prepared(tmp_path_factory.mktemp("project") / "copy")


@pytest.fixture(scope="session")
def served(prepared: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two versions of `breast-ultrasound`: the champion, 1, answers phantoms well, 2 hardly.

    A copy for each test process of what was trained once for all of them: whoever moves an alias disturbs nobody.
    """
    shared = tmp_path_factory.getbasetemp()
    common = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "served"
    with FileLock(f"{common}.lock"):
        if not common.exists():
            made = prepared(common)  # not renamed later: the tracking store holds its path
            # Of 90 % of so few images a class every prediction set holds all classes, and the model always abstains.
            few = "--calibrate.coverage=0.6"
            good = ["--model.name=tf_efficientnet_lite0", "--model.weights=packaged", "--train.epochs=6", few]
            for options in (good, ["--train.epochs=1", few]):
                ultrasound(made, "train", *options)
                ultrasound(made, "register", "--register.run=latest", "--evaluate.explain=false")
    return Path(shutil.copytree(common, tmp_path_factory.mktemp("served") / "copy", symlinks=True))


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A project of which no stage has run yet."""
    return copy_project(tmp_path / "fresh", SMALL)


@pytest.fixture
def busi_archive() -> Path:
    """The real images; tests that need them are skipped where they are not."""
    if not ARCHIVE.is_file():
        pytest.skip("the BUSI archive is not here: set BUSI_ARCHIVE")
    return ARCHIVE


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium without a window."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on the PATH: install it (apt-get install chromium) for the tests of pages")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
