"""`python -m ultrasound ...` again and again without its imports, which take as long as most of what is tested.

A server imports every verb once and then forks for each command. That is as real: the child begins where a new process
is when its imports are done, with its own arguments, folder, environment, output, and end.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
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

    def start(self, folder: Path, arguments: list[str], environment: dict[str, str], output: Path, errors: Path) -> int:
        """Begin a command; the number of its process."""
        asked = {"folder": str(folder), "arguments": arguments, "environment": environment, "output": str(output),
                 "errors": str(errors)}  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        return self._number(600)

    def exit_code(self, timeout: float) -> int:
        """Wait for the end of the command; less than 0: the signal that ended it.

        Raises:
            TimeoutError: it goes on.
        """
        return self._number(timeout)

    def close(self) -> None:
        """End; a command that runs goes on alone."""
        self._process.kill()
        self._process.communicate()

    def _number(self, timeout: float) -> int:
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], timeout)[0]:
            raise TimeoutError
        return int(stdout.readline())


def main() -> None:
    """Serve until stdin ends."""
    import importlib
    import pkgutil

    import ultrasound.__main__
    from ultrasound import commands

    for module in pkgutil.iter_modules(commands.__path__):
        importlib.import_module(f"ultrasound.commands.{module.name}")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
            ultrasound.__main__.main()
            return
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(asked: dict[str, Any]) -> None:
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = [str(Path(asked["folder"], "src/ultrasound/__main__.py")), *asked["arguments"]]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)


if __name__ == "__main__":
    main()
