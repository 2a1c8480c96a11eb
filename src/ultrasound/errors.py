"""The exceptions that a user meets: a sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

import signal
from typing import Any


class InputError(Exception):
    """Bad input or a missing prerequisite. The command line prints its text and ends with `exit_code`."""

    exit_code = 1


class ParameterError(InputError):
    """A wrong key or value in params.yaml or on the command line."""

    exit_code = 2


def raise_on_signals() -> None:
    """From now on the first SIGTERM or Ctrl-C raises in the main thread, and further ones are ignored."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)


class Terminated(KeyboardInterrupt):
    """Asked to end by SIGTERM, as by Ctrl-C."""


def _stop(number: int, frame: Any) -> None:
    # `mlflow run` answers Ctrl-C, which its child has heard too, with SIGTERM: once is enough.
    for every in (signal.SIGTERM, signal.SIGINT):
        signal.signal(every, signal.SIG_IGN)
    if number == signal.SIGTERM:
        raise Terminated("stopped by SIGTERM")
    raise KeyboardInterrupt("stopped by Ctrl-C")
