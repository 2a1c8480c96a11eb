"""The Optuna study behind `tune`: opened or continued, its slots counted, its dead trials tried again.

A study lives in a database and outlives every process. A trial whose process is gone is marked as failed and put in
line again with the same parameters: at once where the process was one of this machine, else when it has been silent for
`GRACE` heartbeats (Optuna's own mechanism).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from ultrasound.errors import InputError, signals_wait
from ultrasound.search import space
from ultrasound.search.pruning import FoldsAndEpochs
from ultrasound.sections import Params, Tune
from ultrasound.tracking import heartbeat

# Heartbeats and the retry of silent trials are years old, and still called experimental.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

STORAGE_VARIABLE = "TUNE_STORAGE"  # with a password, which params.yaml is no place for
GRACE = 3  # heartbeats
RETRIES = 3
WAIT_SECONDS = 60  # for a database that others are writing to
PARENT = "parent_run"  # attribute of a study
PROCESS, RUN, FAILURE = "process", "run_id", "failure"  # attributes of a trial


def storage_address(settings: Tune) -> str:
    """Where the study lives: `TUNE_STORAGE` if it is set, else `tune.storage`."""
    return os.environ.get(STORAGE_VARIABLE) or settings.storage


def open_study(params: Params, shared: Mapping[str, Any] | None) -> optuna.Study:
    """Create a study with a first trial of today's parameters, or load the one of that name.

    To be called under the lock of its database.

    Args:
        shared: what all its trials have in common; a study that was begun with other values is refused. None where
            this was checked before.

    Raises:
        InputError: the study was begun with other values.
    """
    settings, address = params.tune, storage_address(params.tune)
    is_sqlite = address.startswith("sqlite")
    storage = RDBStorage(
        address,
        engine_kwargs={"connect_args": {"timeout": WAIT_SECONDS}} if is_sqlite else {"pool_pre_ping": True},
        heartbeat_interval=settings.heartbeat,
        grace_period=GRACE * settings.heartbeat,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(RETRIES),
    )
    study = optuna.create_study(
        storage=storage, study_name=settings.study, direction=settings.direction, load_if_exists=True,
        sampler=_sampler(settings), pruner=FoldsAndEpochs(params),
    )  # fmt: skip
    if shared is None:
        return study
    shared = dict(shared)
    known = study.user_attrs.get("shared")
    if known is None:
        study.set_user_attr("shared", shared)
        study.enqueue_trial(space.defaults(params), user_attrs={"origin": "params.yaml"})
    elif known != shared:
        changed = ", ".join(sorted(key for key in {*known, *shared} if known.get(key) != shared.get(key)))
        raise InputError(f"study {settings.study} was begun with other values of {changed}: choose a new tune.study")
    return study


def trials(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """The trials in these states, not copied."""
    with signals_wait():
        return study.get_trials(deepcopy=False, states=states)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: complete, pruned, or failed by themselves; not those whose process was stopped."""
    ended = trials(study, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    return [trial for trial in ended if trial.state != TrialState.FAIL or FAILURE in trial.user_attrs]


def best(study: optuna.Study) -> FrozenTrial:
    """The complete trial with the best value, the first of equals.

    Raises:
        InputError: no trial is complete.
    """
    complete = trials(study, TrialState.COMPLETE)
    if not complete:
        raise InputError("no trial came to an end: every one was pruned or failed, see the child runs")
    sign = 1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
    return max(complete, key=lambda trial: (sign * (trial.value or 0), -trial.number))


def retry_dead(study: optuna.Study) -> None:
    """Put the trials in line again whose process is gone, and close their runs. Under the lock of the database."""
    running = trials(study, TrialState.RUNNING)
    for trial in running:
        if heartbeat.is_gone(trial.user_attrs.get(PROCESS, "")):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            retry(study, trial.number, RETRIES)
    optuna.storages.fail_stale_trials(study)
    failed = {trial.number for trial in trials(study, TrialState.FAIL)}  # others may have ended well meanwhile
    for trial in running:
        if trial.number in failed and RUN in trial.user_attrs:
            heartbeat.close(trial.user_attrs[RUN])


def retry(study: optuna.Study, number: int, limit: int | None = None) -> None:
    """Put a failed trial in line again, as a new one with the same parameters, unless it was so `limit` times."""
    (failed,) = [trial for trial in study.get_trials() if trial.number == number]
    RetryHeartbeatStaleTrialCallback(limit)(study, failed)


def retried(trial: optuna.Trial) -> int | None:
    """The number of the trial that this one repeats, if it does."""
    frozen = trial.study.get_trials(deepcopy=False)[trial.number]
    return RetryHeartbeatStaleTrialCallback.retried_trial_number(frozen)


def _sampler(settings: Tune) -> optuna.samplers.BaseSampler:
    # Workers draw apart: with one seed and no trial yet, all would begin with the same.
    seed = settings.seed + os.getpid() if settings.workers > 1 else settings.seed
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    conditional = any(allowed.when for allowed in settings.space.values())
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=settings.startup_trials, multivariate=True, group=conditional, constant_liar=True
    )
