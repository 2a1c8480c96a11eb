"""A process that serves one version, as its parent sees it; what it does is in `worker`."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ultrasound.tracking.serving_versions import Version

# The model brings a package `ultrasound`, so ours goes by another name where the model runs.
BOOT = """
import importlib.util, sys
folder, control, listening = sys.argv[1:]
spec = importlib.util.spec_from_file_location("guarded", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["guarded"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["guarded"])
from guarded import worker
worker.main(int(control), int(listening))
"""


@dataclasses.dataclass(eq=False)
class Child:
    """A process that serves a version, or is about to, or no more."""

    version: Version
    folder: Path  # all of its files
    model: Path  # the model among them
    process: subprocess.Popen[bytes]
    control: socket.socket
    since: float
    is_ready: bool = False
    reason: str = ""  # why it gave up
    is_alive: bool = True

    def tell(self, word: str) -> None:
        """Say one word to it."""
        with suppress(OSError):
            self.control.sendall(f"{word}\n".encode())

    def hear(self) -> None:
        """Take in what it has said; the end of its socket is its own end."""
        try:
            text = self.control.recv(4096).decode()
        except OSError:
            text = ""
        for line in text.splitlines():
            word, _, rest = line.partition(" ")
            self.is_ready |= word == "ready"
            self.reason = rest if word == "failed" else self.reason
        if not text:
            self.bury()

    def bury(self) -> None:
        """End it, if it has not ended."""
        self.is_alive = False
        self.process.kill()
        self.process.wait()
        self.control.close()


def start(version: Version, folder: Path, model: Path, listening: socket.socket, settings: dict[str, Any]) -> Child:
    """Start a process that loads a model, and then serves it.

    Args:
        folder: what it works in.
        model: the model's folder.
        listening: the socket that clients connect to.
        settings: section `serve` of params.yaml, and `root`, the folder to clear away if the parent is gone.
    """
    ours, theirs = socket.socketpair()
    # No MLflow server's address or password for the model's code; and it is loaded without pickle.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    inherited = (theirs.fileno(), listening.fileno())
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", BOOT, str(Path(__file__).parent), *map(str, inherited)],
            pass_fds=inherited, cwd=folder, start_new_session=True, stdin=subprocess.DEVNULL,
            env=kept | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        )  # fmt: skip
    child = Child(version, folder, model, process, ours, time.monotonic())
    identity = {"model_version": version.label, "run_id": version.run_id, "experiment_id": version.experiment_id}
    told = {"folder": str(model), **identity, **settings}
    child.tell(json.dumps(told))
    return child
