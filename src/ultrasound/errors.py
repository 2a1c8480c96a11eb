"""The exceptions that a user meets: a sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class InputError(Exception):
    """Bad input or a missing prerequisite. The command line prints its text and ends with `exit_code`."""

    exit_code = 1


class ParameterError(InputError):
    """A wrong key or value in params.yaml or on the command line."""

    exit_code = 2


class Terminated(KeyboardInterrupt):
    """Asked to end by SIGTERM, or by SIGHUP when its terminal closed, as by Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number  # of the signal


ECHO_SECONDS = 3.0  # `mlflow run` answers Ctrl-C, which its child has heard too, with SIGTERM: once is enough
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Stop:
    """Whether this process was asked to end, and whether that has to wait."""

    def __init__(self) -> None:
        self.asked: float | None = None
        self.pending: KeyboardInterrupt | None = None
        self.raised: KeyboardInterrupt | None = None
        self.waits = False

    def hear(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.asked is None:
            self.asked = now
            is_key = number == signal.SIGINT
            self.pending = KeyboardInterrupt("stopped by Ctrl-C") if is_key else Terminated(number)
        if not self.waits or now - self.asked > ECHO_SECONDS:
            self.end()

    def end(self) -> None:
        """Raise what was asked for, once; what comes after that is ignored, up to the end of the interpreter."""
        if self.pending:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            self.raised, self.pending = self.pending, None
            raise self.raised

    def insist(self) -> None:
        """Raise again what was raised, if the work goes on all the same."""
        if self.raised:
            raise self.raised


_stop = _Stop()


def raise_on_signals() -> None:
    """From now on the first SIGTERM, SIGHUP or Ctrl-C raises in the main thread, and further ones are ignored.

    A SIGHUP that is ignored already, as under nohup, stays so.
    """
    global _stop
    _stop = _Stop()
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop.hear)


def stop_if_asked() -> None:
    """Raise again what a signal has raised, where work goes on that nothing would do that is being stopped.

    Python drops what is raised in a destructor or in a callback of a weak reference, and a signal may come there.
    """
    _stop.insist()


@contextmanager
def signals_wait(wait: bool = True) -> Iterator[None]:
    """A signal that comes within raises at the end, or in a `signals_wait(False)` inside; a second one does not wait.

    For what must not be cut short: SQLAlchemy, under MLflow and Optuna, keeps a database locked if it is.
    """
    before, _stop.waits = _stop.waits, wait
    try:
        if not wait:  # work begins
            _stop.end()
            _stop.insist()
        yield
    finally:
        _stop.waits = before
        if not before:
            _stop.end()
