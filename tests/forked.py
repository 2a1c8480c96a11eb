"""Commands of Python again and again without their imports, which take as long as most of what is tested.

A server imports what the commands import once and then forks for each of them. The child begins where a new process is
when its imports are done, with its own arguments, folder, environment, output, and end. Other than in a new process,
the code is that of this project, not of a copy in the folder; all verbs and what they import late are there; variables
that are read at an import, and the seed of hashes, are the server's; what libraries leave for the end at their import
is not done where a verb ends by itself. So each program also runs as a new process in some test.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing.process
import os
import pkgutil
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).parents[1]
# What commands import only where they use it.
LATE = (
    "alembic.command", "git", "matplotlib.pyplot", "mlflow.cli", "mlflow.models.evaluation", "mlflow.projects",
    "mlflow.pyfunc", "mlflow.store.model_registry.sqlalchemy_store", "mlflow.store.tracking.sqlalchemy_store",
    "optuna.visualization.matplotlib", "plotly.graph_objects", "torch._dynamo", "torch.onnx",
)  # fmt: skip


class Process:
    """A command that was begun, much as `subprocess.Popen` has it; what it says lies in the files of `folder`."""

    def __init__(self, server: Server, pid: int, folder: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.output, self.errors = folder / "output", folder / "errors"
        self._server = server

    def poll(self) -> int | None:
        """The exit code, less than 0: the signal that ended it; None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.ended(self.pid)
        return self.returncode

    def wait(self, timeout: float = 1500) -> int:
        """The exit code, when it has ended.

        Raises:
            TimeoutError: it goes on.
        """
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"process {self.pid} goes on: {self.errors.read_text()}")
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float = 1500) -> tuple[str, str]:
        """What it had said when it ended, and its errors."""
        self.wait(timeout)
        return self.output.read_text(), self.errors.read_text()

    def send_signal(self, number: int) -> None:
        """As its name says; nothing to one that has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Server:
    """The process that imports and forks.

    Args:
        environment: where its imports read their settings.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._files = tempfile.TemporaryDirectory()
        self._begun = 0
        self._codes: dict[int, int | None] = {}  # by process, None: it runs
        path = os.pathsep.join((str(PROJECT / "src"), str(PROJECT)))
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            env=environment | {"PYTHONPATH": path}, start_new_session=True,
        )  # fmt: skip

    def start(self, folder: Path, command: list[str], environment: dict[str, str]) -> Process:
        """Begin `python -m MODULE ...`, `python SCRIPT ...`, or a program that is a script of Python, in `folder`."""
        self._begun += 1
        place = Path(self._files.name, str(self._begun))
        place.mkdir()
        for name in ("output", "errors"):
            (place / name).touch()
        asked = {"folder": str(folder), "command": command, "environment": environment, "place": str(place)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        while (pid := self._news()) is None:
            pass
        return Process(self, pid, place)

    def ended(self, pid: int) -> int | None:
        """The exit code of a process, None while it runs."""
        assert self._process.stdout is not None
        while select.select([self._process.stdout], [], [], 0)[0]:
            self._news()
        return self._codes[pid]

    def close(self) -> None:
        """End, and the commands that run with it."""
        self._process.communicate()  # at the end of its stdin it kills them
        self._files.cleanup()

    def _news(self) -> int | None:
        """Take a line of the server: the process that it began, or None: one has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server of commands has ended, see above"
        pid, *code = map(int, line.split())
        self._codes[pid] = code[0] if code else None
        return None if code else pid


def main() -> None:
    """Serve until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    before = dict(os.environ)
    importlib.import_module("ultrasound.__main__")  # sets what torch reads when it is imported
    del sys.modules["ultrasound.__main__"]  # runpy imports it anew
    from ultrasound import commands

    for name in [f"ultrasound.commands.{module.name}" for module in pkgutil.iter_modules(commands.__path__)]:
        importlib.import_module(name)
    for name in LATE:
        importlib.import_module(name)
    import sqlalchemy.orm

    sqlalchemy.orm.configure_mappers()
    set_by_imports = {name: value for name, value in os.environ.items() if before.get(name) != value}
    sys.stdout.flush()
    gc.collect()
    gc.freeze()  # so that the children share its pages
    ends, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: set[int] = set()
    while True:
        ready, _, _ = select.select([0, ends], [], [])
        if ends in ready:
            os.read(ends, 512)
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    running.remove(pid)
                    print(pid, os.waitstatus_to_exitcode(status), file=answers, flush=True)
        if 0 in ready:
            line = sys.stdin.buffer.readline()  # there is one at a time: the next waits for the answer
            if not line:
                for pid in running:
                    os.killpg(pid, signal.SIGKILL)
                return
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number in (ends, wake):
                    os.close(number)
                answers.close()
                _become(json.loads(line), set_by_imports)
                return
            running.add(child)
            print(child, file=answers, flush=True)


def _become(asked: dict[str, Any], set_by_imports: dict[str, str]) -> None:
    os.setpgid(0, 0)
    np.random.seed()  # not that of the children before it
    multiprocessing.process.ORIGINAL_DIR = asked["folder"]  # type: ignore[attr-defined]
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(set_by_imports | asked["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(Path(asked["place"], name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    program, *arguments = asked["command"]
    if program == sys.executable and arguments[0] == "-m":
        sys.argv, sys.path[0] = arguments[1:], asked["folder"]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = arguments if program == sys.executable else [str(shutil.which(program)), *arguments]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
