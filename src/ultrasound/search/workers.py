"""Workers of a study: each claims a slot, runs a trial in it, and goes on until the study holds its trials.

A slot is claimed under the lock of the study's database, so that all workers together, on however many machines, run
exactly the trials that are asked for.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from ultrasound.errors import signals_wait
from ultrasound.search import study
from ultrasound.tracking import heartbeat, mutex

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
        has_ended = False
        with contextlib.ExitStack() as lock:
            lock.enter_context(mutex.held(address))
            with signals_wait():
                study.retry_dead(opened)
            running = study.trials(opened, TrialState.RUNNING)
            if len(study.finished(opened)) + len(running) >= count or time.time() >= deadline:
                return False

            def begun(trial: optuna.Trial) -> float:
                nonlocal has_ended
                trial.set_user_attr(study.PROCESS, heartbeat.marks()[heartbeat.PROCESS_TAG])
                lock.close()  # the slot is taken: the trial counts as running
                try:
                    with signals_wait(False):
                        value = objective(trial)
                except TrialError as error:
                    trial.set_user_attr(study.FAILURE, str(error))
                    has_ended = True
                    raise
                except optuna.TrialPruned:
                    has_ended = True
                    raise
                except KeyboardInterrupt:
                    study.retry(opened, trial.number)
                    raise
                has_ended = True
                return value

            try:
                with signals_wait():  # or a thread of Optuna's, which beats its heart, might be left and never end
                    opened.optimize(begun, n_trials=1, catch=(TrialError,))
            except (AssertionError, ValueError):
                if not has_ended:
                    raise
                # The end of a trial that others took for dead (a machine that slept) cannot be noted: they repeat it.
        gc.collect()  # a trial that was given up leaves its network in a cycle of frames, on a GPU too
        return True

    gc.freeze()  # what is here now stays: the collections after each trial need not look at it
    try:
        while len(study.finished(opened)) < count and time.time() < deadline:
            if not run_free_slot():
                time.sleep(POLL_SECONDS)
            on_change(opened)
        while study.trials(opened, TrialState.RUNNING):  # of others, which began before the time was over
            with mutex.held(address), signals_wait():
                study.retry_dead(opened)
            time.sleep(POLL_SECONDS)
            on_change(opened)
    finally:
        gc.unfreeze()
