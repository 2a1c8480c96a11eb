"""`make demo`: the whole way on synthetic phantoms, offline, with the very commands that a user types.

Copies the project's tracked files into build/demo, makes the parameters small, and runs there: dvc repro, mlflow run
(train, register, tune), mlflow models serve, one request. Leaves its runs in build/demo, and no process.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[1]
DEMO = PROJECT / "build" / "demo"
SERVER_START_SECONDS = 120
UI_ADDRESS = "http://127.0.0.1:5000/#/experiments/0?workflowType=machine_learning"
EXPECTED_MACRO_F1 = 0.85  # on the phantoms' test set

# What differs from params.yaml: phantoms, real ImageNet weights without a hub, and sizes for two CPU cores.
SMALL: dict[str, dict[str, Any]] = {
    "data": {"source": "phantom", "count": 300},
    "preprocess": {"size": 128},
    "model": {"name": "tf_efficientnet_lite0", "weights": "packaged", "head_width": 64},
    "train": {"epochs": 8, "batch_size": 16, "learning_rate": 0.001},
    "tune": {"trials": 3, "folds": [0], "repeats": 1},
    # 16 malignant images choose the operating point, 60 images measure what the gate asks for: chance has its part.
    "register": {"min_sensitivity": 0.5, "max_ece": 0.3},
}
TUNING = ["-P", "train.epochs=3"]


def main() -> None:
    """Run the demo; any command that fails ends it with that command's exit code."""
    started = time.monotonic()
    _copy_project()
    _run("dvc repro", "dvc", "repro")
    _run("fine-tune", *_mlflow_run("train"))
    _run("test, register", *_mlflow_run("register"))
    _run("search; its best is registered too", *_mlflow_run("tune"), *TUNING)
    image = _test_image("malignant")
    answer = _serve_and_ask(image)
    _summary(image, answer, time.monotonic() - started)


def _copy_project() -> None:
    shutil.rmtree(DEMO, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (PROJECT / name).is_file():
            (DEMO / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, DEMO / name)
    values = yaml.safe_load((PROJECT / "params.yaml").read_text())
    for section, changes in SMALL.items():
        values[section] |= changes
    (DEMO / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    git = ["git", "-c", "user.name=demo", "-c", "user.email=demo@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--no-verify", "-m", "demo"]):
        subprocess.run([*git, *command], cwd=DEMO, check=True)


def _mlflow_run(entry_point: str) -> list[str]:
    return ["mlflow", "run", ".", "-e", entry_point, "--env-manager", "local"]


def _environment() -> dict[str, str]:
    # The demo keeps to its own folder, whatever tracking server or run the caller's shell names.
    return {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "BUSI_"))}


def _run(title: str, *command: str) -> None:
    print(f"\n=== {title}: {' '.join(command)} ===", flush=True)
    result = subprocess.run(command, cwd=DEMO, env=_environment(), check=False)
    if result.returncode:
        sys.exit(f"demo: `{' '.join(command)}` ended with exit code {result.returncode}, see above")


def _summary(image: Path, answer: Any, seconds: float) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{DEMO}/mlflow.db")
    champion = client.get_model_version_by_alias("breast-ultrasound", "champion")
    run = client.get_run(champion.tags["run_id"])
    test = client.get_run(champion.tags["evaluation_run"]).data.metrics
    with (DEMO / "build/splits.csv").open() as table:
        rows = list(csv.DictReader(table))
    print("\n=== summary ===")
    print(
        "images    " + ", ".join(f"{n} {label}" for label, n in collections.Counter(r["label"] for r in rows).items())
    )
    print(
        "split     " + ", ".join(f"{n} {split}" for split, n in collections.Counter(r["split"] for r in rows).items())
    )
    print(f"training  {run.info.run_name}: macro-F1 {run.data.metrics['best/macro_f1']:.3f} on the fold left out")
    print(f"test set  macro-F1 {test['test/macro_f1']:.3f}, accuracy {test['test/accuracy']:.3f}, "
          f"sensitivity to malignant {test['test/recall_malignant']:.3f}")  # fmt: skip
    print(f"registry  breast-ultrasound version {champion.version}, alias champion")
    print(f"server    {image.relative_to(DEMO)} -> {json.dumps(answer['predictions'][0])}")
    print(f"\nThe whole way in {seconds:.0f} s. Look at the runs: cd {DEMO.relative_to(PROJECT)} && mlflow ui")
    print(f"and open {UI_ADDRESS}")
    print("Synthetic phantoms say nothing about real patients; with the real images: see README, Real data.")
    if test["test/macro_f1"] < EXPECTED_MACRO_F1:
        sys.exit(
            f"demo: macro-F1 on the test set is below {EXPECTED_MACRO_F1}, something is wrong with this installation"
        )


def _test_image(label: str) -> Path:
    with (DEMO / "build/splits.csv").open() as table:
        row = next(row for row in csv.DictReader(table) if row["label"] == label and row["split"] == "test")
    return DEMO / "build/phantoms" / f"{row['image_id']}.png"


def _serve_and_ask(image: Path) -> Any:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["mlflow", "models", "serve", "-m", "models:/breast-ultrasound@champion", "--env-manager", "local",
               "-p", str(port)]  # fmt: skip
    print(f"\n=== serve: {' '.join(command)} ===", flush=True)
    log = DEMO / "build" / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, cwd=DEMO, env=_environment(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}/health", server, log)
            body = {
                "dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(image.read_bytes()).decode()]]}
            }
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        finally:
            for ending in (signal.SIGTERM, signal.SIGKILL):  # to mlflow and the server that it started
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(server.pid, ending)
                    server.wait(20)


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(SERVER_START_SECONDS):
        if server.poll() is not None:
            sys.exit(
                f"demo: the server ended with exit code {server.returncode}; its log: {log}\n{log.read_text()[-2000:]}"
            )
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    sys.exit(f"demo: no answer from {url} within {SERVER_START_SECONDS} s; its log: {log}\n{log.read_text()[-2000:]}")


if __name__ == "__main__":
    main()
