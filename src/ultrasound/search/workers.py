"""Workers of a study: each claims a slot, runs a trial in it, and goes on until the study holds its trials.

A slot is claimed under the lock of the study's database, so that all workers together, on however many machines, run
exactly the trials that are asked for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from ultrasound.errors import signals_wait
from ultrasound.search import mutex, study
from ultrasound.tracking import heartbeat

POLL_SECONDS = 2.0

Objective = Callable[[optuna.Trial], float]


class TrialError(Exception):
    """A trial that failed by itself: it counts as one of the study, and the others go on."""


def work(
    opened: optuna.Study, address: str, count: int, deadline: float, objective: Objective,
    on_change: Callable[[optuna.Study], object] = lambda opened: None,
) -> None:  # fmt: skip
    """Run trials until the study holds `count` finished ones, or the time is over.

    Waits for the last trials of other workers, whose slots fall free if they die.

    Args:
        address: of the study's database.
        deadline: by `time.time`; no trial begins after it.
        objective: may raise `TrialPruned` or `TrialError`.
        on_change: called after each own trial, and while waiting.
    """

    def run_free_slot() -> bool:
        """Run a trial if there is a free slot; says whether there was one."""
        with contextlib.ExitStack() as lock:
            lock.enter_context(mutex.held(address))
            with signals_wait():
                study.retry_dead(opened)
            running = study.trials(opened, TrialState.RUNNING)
            if len(study.finished(opened)) + len(running) >= count:
                return False

            def begun(trial: optuna.Trial) -> float:
                trial.set_user_attr(study.PROCESS, heartbeat.marks()[heartbeat.PROCESS_TAG])
                lock.close()  # the slot is taken: the trial counts as running
                try:
                    with signals_wait(False):
                        return objective(trial)
                except TrialError as error:
                    trial.set_user_attr(study.FAILURE, str(error))
                    raise
                except KeyboardInterrupt:
                    study.retry(opened, trial.number)
                    raise

            with signals_wait():  # or a thread of Optuna's, which beats its heart, might be left and never end
                opened.optimize(begun, n_trials=1, catch=(TrialError,))
        return True

    while len(study.finished(opened)) < count and time.time() < deadline:
        if not run_free_slot():
            time.sleep(POLL_SECONDS)
        on_change(opened)
