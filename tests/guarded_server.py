"""Start the real `python -m ultrasound serve` on a free port, and ask it in good and in bad ways."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import psutil
import requests

from tests.conftest import environment

NAME = "breast-ultrasound"
WAIT = 120  # seconds in which the server must have loaded its model


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=30, **options)

    def ask(self, body: bytes, session: Any = requests, **headers: str) -> requests.Response:
        """POST a body to /invocations."""
        headers = {"Content-Type": "application/json"} | {key.replace("_", "-"): text for key, text in headers.items()}
        return session.post(f"{self.url}/invocations", body, headers=headers, timeout=60)

    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines of its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def workers(self) -> list[psutil.Process]:
        """The processes that answer: one, but while versions change."""
        return psutil.Process(self.process.pid).children()

    def raw(self, content: bytes = b"") -> socket.socket:
        """A connection to which these bytes were sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(content)
        return connection


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def guarded(project: Path, *options: str, name: str = "guarded", **extra: str) -> Iterator[Server]:
    """`python -m ultrasound serve` in a project; ready when the block begins, killed after it if it still runs."""
    port, log = free_port(), project / f"build/{name}-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "ultrasound", "serve", "--serve.port", str(port), *options]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=project, env=environment(**extra), stdout=file, stderr=file)
    server = Server(process, port, log)
    try:
        end = time.monotonic() + WAIT
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{server.url}/ready", timeout=WAIT).ok:
                    break
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()


def point(project: Path, version: int, alias: str = "champion") -> None:
    """Let an alias point to a version."""
    mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db").set_registered_model_alias(NAME, alias, str(version))


def head(length: int | None, *lines: str, path: str = "/invocations", method: str = "POST") -> bytes:
    """The headers of a request, as bytes."""
    size = [] if length is None else [f"Content-Length: {length}"]
    kind = ["Content-Type: application/json"] if not any(line.startswith("Content-Type") for line in lines) else []
    host = ["Host: localhost"] if not any(line.startswith("Host") for line in lines) else []
    return "\r\n".join([f"{method} {path} HTTP/1.1", *host, *kind, *size, *lines, "", ""]).encode()


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content of what comes over a raw connection; status 0: it was closed without a word."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65_536)
        if not piece:
            return 0, {}, received
        received += piece
    top, _, content = received.partition(b"\r\n\r\n")
    first, *rest = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in rest)}
    while len(content) < int(headers.get("content-length", 0)):
        piece = connection.recv(65_536)
        if not piece:
            break
        content += piece
    return int(first.split()[1]), headers, content
