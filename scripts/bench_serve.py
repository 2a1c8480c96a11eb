"""`make bench-serve`: how fast the guarded server answers, beside ONNX Runtime's bare pass and a torch model.

Everything is made for it in a temporary store: an untrained ResNet50 for 224 x 224 pixels, registered and served by
`python -m ultrasound serve`, and the same networks as a pyfunc that runs torch under MLflow's stock server. The images
are PNGs of BUSI (BUSI_ARCHIVE), or phantoms without them. In turns, so that neither disturbs the other.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import io
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime
import psutil
import torch

from ultrasound.images.preparation import Preparation
from ultrasound.images.sources import phantom
from ultrasound.inference.calibration import Calibration
from ultrasound.inference.graph import NETWORK
from ultrasound.learning import costs
from ultrasound.learning.backbone import Network
from ultrasound.learning.classifier import Classifier, Ensemble
from ultrasound.scoring import resemblance
from ultrasound.tracking import models, store

PROJECT = Path(__file__).parents[1]
NAME = "breast-ultrasound"
IMAGES = 40
ROUNDS = 10
TORCH_MODEL = """
import base64, pathlib
import mlflow, numpy as np, pandas as pd
from ultrasound.learning import classifier

class Torch(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.classifier = classifier.load(pathlib.Path(context.artifacts["classifier"]))

    def predict(self, context, model_input, params=None):
        contents = [base64.b64decode(row, validate=True) for row in model_input["image"]]
        images = np.stack([self.classifier.preparation.image(content) for content in contents])
        return pd.DataFrame(self.classifier.probabilities(images), columns=self.classifier.labels)

mlflow.models.set_model(Torch())
"""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500, help="requests of eight clients")
    parser.add_argument("--long", type=int, default=2000, help="requests over which memory is watched")
    arguments = parser.parse_args()
    contents, kind = _images()
    bodies = [_body(content) for content in contents]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(PROJECT / "params.yaml", folder)
        os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true"}
        os.environ["PYTHONPATH"] = str(PROJECT / "src")
        model, torch_uri = _models(folder, contents)
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        print(f"ResNet50, 224 x 224 pixels, {kind}; {machine}, "
              f"ONNX Runtime {onnxruntime.__version__}, torch {torch.__version__}")  # fmt: skip
        bare = Bare(Path(mlflow.artifacts.download_artifacts(model)) / "artifacts/classifier", contents)
        with _guarded(folder) as (port, pid), _stock(folder, torch_uri) as stock:
            one: list[float] = []
            slow: list[float] = []
            for _ in range(ROUNDS):  # in turns, because the machine is not equally fast at all times
                bare.measure()
                one += _measure(port, bodies, IMAGES, 1)
                slow += _measure(stock, bodies, IMAGES, 1)
            single, alone = statistics.median(one), bare.median()
            print(f"  bare pass of ONNX Runtime, median          {1000 * alone:7.1f} ms")
            _line("guarded, 1 client, p50", single, alone)
            _line("torch pyfunc, stock MLflow, 1 client, p50", statistics.median(slow), alone)
            times, most = (statistics.median(slow) / seconds for seconds in (single, alone))
            print(f"  guarded is {times:.2f} times as fast; {most:.2f} if nothing but the bare pass took time")
            speed = costs.operations(Network("resnet50", 3, 256, 0.3), 224) / alone / 1e9
            print(f"  the bare pass computes {speed:.0f} GFLOP/s in fp32, torch's matrix product {_product():.0f}")
            eight: list[float] = []
            bare.measure()
            for _ in range(ROUNDS):
                eight += _measure(port, bodies, arguments.requests // ROUNDS, 8)
                bare.measure()
            beside = bare.median()
            print(f"  bare pass of ONNX Runtime, median          {1000 * beside:7.1f} ms")
            _line("guarded, 8 clients, p50", statistics.median(eight), beside)
            _line("guarded, 8 clients, p95", float(np.quantile(eight, 0.95)), beside)
            rate = 8 * len(eight) / sum(eight)
            print(f"  guarded, 8 clients, {len(eight)} requests: no error, {rate:.1f} images/s")
            before = _memory(pid)
            _measure(port, bodies, arguments.long, 2)
            after = _memory(pid)
            grown = f"{before / 1e6:.0f} -> {after / 1e6:.0f} MB ({after / before - 1:+.1%})"
            print(f"  memory over {arguments.long} requests: {grown}")
        for images in (1, 2, 4, 8):
            bare.measure(images)
            print(f"  pass of {images} images: {1000 * bare.median() / images:.1f} ms an image")


def _product(side: int = 2048) -> float:
    """GFLOP/s of torch's product of two square matrices in fp32, its best of some: what the processor can do."""
    one, best = torch.rand(side, side), float("inf")
    for _ in range(10):
        began = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best / 1e9


def _line(what: str, seconds: float, bare: float) -> None:
    print(f"  {what:<42} {1000 * seconds:7.1f} ms = {seconds / bare:5.2f} x bare")


def _images() -> tuple[list[bytes], str]:
    archive = Path(os.environ.get("BUSI_ARCHIVE", PROJECT.parent / "shared/busi/Dataset_BUSI.zip"))
    if archive.is_file():
        with zipfile.ZipFile(archive) as opened:
            names = sorted(name for name in opened.namelist() if name.endswith(".png") and "_mask" not in name)
            return [opened.read(name) for name in names[:: len(names) // IMAGES][:IMAGES]], f"{IMAGES} PNGs of BUSI"
    found = []
    for number in range(IMAGES):
        buffer = io.BytesIO()
        phantom.phantom(("benign", "malignant", "normal")[number % 3], number, 0)[0].save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found, f"{IMAGES} PNGs of phantoms"


def _body(content: bytes) -> bytes:
    text = base64.b64encode(content).decode()
    return json.dumps({"dataframe_split": {"columns": ["image"], "data": [[text]]}}).encode()


def _models(folder: Path, contents: list[bytes]) -> tuple[str, str]:
    """Log the classifier, register it as champion, and log the same as a torch pyfunc; their addresses."""
    torch.manual_seed(0)
    preparation = Preparation(224, fit="pad")
    pixels = np.stack([preparation.image(content) for content in contents])
    labels = ("benign", "malignant", "normal")
    model = Classifier(
        Ensemble([Network("resnet50", 3, 256, 0.3)], flip=False).eval(), labels, preparation, "0" * 16,
        Calibration(1.0, "malignant", 0.3, (0.2, 0.2, 0.2), 0.95, 0.9, IMAGES, "of a benchmark"),
        resemblance.fit(pixels, np.arange(len(pixels))),
    )  # fmt: skip
    mlflow.create_experiment("bench-serve", artifact_location=f"{folder}/artifacts")
    mlflow.set_experiment("bench-serve")
    with mlflow.start_run(log_system_metrics=False) as run:
        models.log(model)
        model.save(folder / "torch")
        (folder / "torch_model.py").write_text(TORCH_MODEL)
        info = mlflow.pyfunc.log_model(
            name="torch", python_model=str(folder / "torch_model.py"), artifacts={"classifier": str(folder / "torch")},
            pip_requirements=["mlflow"],
        )  # fmt: skip
    tags = mlflow.MlflowClient().get_run(run.info.run_id).data.tags
    known = {key: tags[key] for key in (store.MODEL_TAG, store.MANIFEST_TAG)}
    version = mlflow.register_model(tags[store.MODEL_TAG], NAME, tags=known | {"run_id": run.info.run_id})
    mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", version.version)
    return tags[store.MODEL_TAG], info.model_uri


class Bare:
    """ONNX Runtime's pass alone, with its own defaults and nothing around it."""

    def __init__(self, folder: Path, contents: list[bytes]) -> None:
        self.session = onnxruntime.InferenceSession(str(folder / NETWORK), providers=["CPUExecutionProvider"])
        preparation = Preparation(224, fit="pad")
        self.pixels = np.stack([preparation.image(content) for content in contents])
        self.seconds: list[float] = []

    def measure(self, together: int = 1) -> None:
        """Take the time of a pass of each image, or of so many at once."""
        for start in (0, *range(0, len(self.pixels) - together + 1, together)):  # the first twice: it warms up
            began = time.perf_counter()
            self.session.run(["logits"], {"pixels": self.pixels[start : start + together]})
            self.seconds.append(time.perf_counter() - began)

    def median(self) -> float:
        """Of what has been measured since it was last asked for."""
        found, self.seconds = statistics.median(self.seconds), []
        return found


@contextlib.contextmanager
def _guarded(folder: Path) -> Iterator[tuple[int, int]]:
    port = _free_port()
    command = [sys.executable, "-m", "ultrasound", "serve", "--serve.port", str(port)]
    with _process(command, folder, port) as pid:
        yield port, pid


@contextlib.contextmanager
def _stock(folder: Path, uri: str) -> Iterator[int]:
    port = _free_port()
    command = ["mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "-p", str(port)]
    with _process(command, folder, port):
        yield port


@contextlib.contextmanager
def _process(command: list[str], folder: Path, port: int) -> Iterator[int]:
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(240):
                with contextlib.suppress(OSError):
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                    connection.request("GET", "/health")
                    if connection.getresponse().status == 200:
                        break
                if process.poll() is not None:
                    sys.exit(f"error: {command} ended:\n{(folder / 'server.log').read_text()}")
                time.sleep(0.5)
            yield process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _measure(port: int, bodies: list[bytes], requests: int, clients: int) -> list[float]:
    """Seconds of each of so many requests; every client keeps its connection and asks again once answered."""
    seconds: list[float] = []
    left = iter(range(requests))
    lock = threading.Lock()
    failed: list[str] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while not failed:
            with lock:
                number = next(left, None)
            if number is None:
                return
            started = time.perf_counter()
            body = bodies[number % len(bodies)]
            connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            seconds.append(time.perf_counter() - started)
            if answer.status != 200:
                failed.append(f"{answer.status} {content[:200]!r}")

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed or len(seconds) != requests:
        sys.exit(f"error: {len(seconds)} of {requests} requests were answered; {failed[:1]}")
    return seconds


def _memory(pid: int) -> int:
    """Bytes that a process and its children hold."""
    process = psutil.Process(pid)
    return sum(int(each.memory_info().rss) for each in (process, *process.children(recursive=True)))


if __name__ == "__main__":
    main()
