"""`python -m ultrasound ...` again and again without its imports, which take as long as most of what is tested.

A server imports every verb once and then forks for each command. The child begins where a new process is when its
imports are done, with its own arguments, folder, environment, output, and end. Other than in a new process, the code is
that of this project, not of a copy in the folder, and what libraries leave for the end at their import is not done.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src"


class Server:
    """The server, for one command at a time.

    Args:
        environment: where its imports read their settings.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            env=environment | {"PYTHONPATH": str(SOURCE)},
        )  # fmt: skip
        self._child = 0  # the process of a command that may still run

    def start(self, folder: Path, arguments: list[str], environment: dict[str, str], output: Path, errors: Path) -> int:
        """Begin a command; the number of its process."""
        asked = {"folder": str(folder), "arguments": arguments, "environment": environment, "output": str(output),
                 "errors": str(errors)}  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._child = self._number(600)
        return self._child

    def exit_code(self, timeout: float) -> int:
        """Wait for the end of the command; less than 0: the signal that ended it.

        Raises:
            TimeoutError: it goes on.
        """
        code = self._number(timeout)
        self._child = 0
        return code

    def close(self) -> None:
        """End, and the command that runs with it."""
        if self._child:
            with suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
        self._process.kill()
        self._process.communicate()

    def _number(self, timeout: float) -> int:
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], timeout)[0]:
            raise TimeoutError(f"no answer within {timeout:.0f} s")
        line = stdout.readline()
        assert line, "the server of commands has ended, see above"
        return int(line)


def main() -> None:
    """Serve until stdin ends."""
    import importlib
    import pkgutil

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    before = dict(os.environ)
    import ultrasound.__main__
    from ultrasound import commands

    for module in pkgutil.iter_modules(commands.__path__):
        importlib.import_module(f"ultrasound.commands.{module.name}")
    set_by_imports = {name: value for name, value in os.environ.items() if before.get(name) != value}
    gc.collect()
    gc.freeze()  # so that the children share its pages
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            answers.close()
            _become(json.loads(line), set_by_imports)
            ultrasound.__main__.main()
            return
        print(child, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _become(asked: dict[str, Any], set_by_imports: dict[str, str]) -> None:
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(set_by_imports | asked["environment"])
    sys.argv = [str(Path(asked["folder"], "src/ultrasound/__main__.py")), *asked["arguments"]]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)


if __name__ == "__main__":
    main()
