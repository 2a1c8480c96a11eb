"""The Optuna study behind `tune`: opened or continued, its slots counted, its dead trials tried again.

A study lives in a database and outlives every process. A trial whose process is gone is marked as failed and put in
line again with the same parameters: at once where the process was one of this machine, else when it has been silent for
`GRACE` heartbeats (Optuna's own mechanism).
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from ultrasound.errors import InputError, ParameterError, signals_wait
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
PROCESS, RUN, FAILURE, ORIGIN = "process", "run_id", "failure", "origin"  # attributes of a trial
HISTORY = "retry_history"  # system attribute of a trial: those that it repeats


def storage_address(settings: Tune) -> str:
    """Where the study lives: `TUNE_STORAGE` if it is set, else `tune.storage`.

    Raises:
        ParameterError: it is no address, or `tune.storage`, which is logged, holds a password.
    """
    given = os.environ.get(STORAGE_VARIABLE)
    try:
        url = sqlalchemy.make_url(given or settings.storage)
    except sqlalchemy.exc.ArgumentError:
        raise ParameterError(
            f"{STORAGE_VARIABLE if given else 'tune.storage'} is no address of a database, such as "
            "sqlite:///build/optuna.db or postgresql://user:password@host/name"
        ) from None
    if url.password and not given:
        raise ParameterError(f"tune.storage holds a password and would be logged: set {STORAGE_VARIABLE} instead")
    return given or settings.storage


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
        heartbeat_stale_trial_callback=_take_back,  # Optuna calls it before every trial, too
    )
    study = optuna.create_study(
        storage=storage, study_name=settings.study, direction=settings.direction, load_if_exists=True,
        pruner=FoldsAndEpochs(params),
    )  # fmt: skip
    known = study.user_attrs.get("shared")
    study.sampler = _sampler(settings, study, is_new=known is None)
    if shared is None:
        return study
    shared = dict(shared)
    if known is None:
        study.set_user_attr("shared", shared)
        first = space.defaults(params)
        missing = ", ".join(key for key, allowed in settings.space.items() if not allowed.when and key not in first)
        origin = "params.yaml" + (f", but for {missing}, outside tune.space" if missing else "")
        study.enqueue_trial(first, user_attrs={ORIGIN: origin})
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
    for trial in trials(study, TrialState.RUNNING):
        # Who claims a slot names itself before it gives the lock back: without a name it died while it held the lock.
        if PROCESS not in trial.user_attrs or heartbeat.is_gone(trial.user_attrs[PROCESS]):
            told = study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            if told.state == TrialState.FAIL:  # else it has ended well meanwhile
                _take_back(study, told)
    optuna.storages.fail_stale_trials(study)


def _take_back(study: optuna.Study, failed: FrozenTrial) -> None:
    retry(study, failed.number, RETRIES)
    if RUN in failed.user_attrs:
        heartbeat.close(failed.user_attrs[RUN])


def retry(study: optuna.Study, number: int, limit: int | None = None) -> None:
    """Put a failed trial in line again, as a new one with the same parameters, unless it was so `limit` times."""
    (failed,) = [trial for trial in study.get_trials(deepcopy=False) if trial.number == number]
    history = [*failed.system_attrs.get(HISTORY, []), number]
    if limit is not None and len(history) > limit:
        return
    # As Optuna's own callback does it, but without what was true of the process and of the pruner's rungs.
    kept = {key: failed.system_attrs[key] for key in ("fixed_params",) if key in failed.system_attrs}
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING, params=failed.params, distributions=failed.distributions,
            user_attrs={key: failed.user_attrs[key] for key in (ORIGIN,) if key in failed.user_attrs},
            system_attrs={**kept, HISTORY: history},
        )
    )  # fmt: skip


def retried(trial: optuna.Trial) -> int | None:
    """The number of the trial that this one repeats, if it does."""
    history = trial.study.get_trials(deepcopy=False)[trial.number].system_attrs.get(HISTORY)
    return history[0] if history else None


def _sampler(settings: Tune, study: optuna.Study, *, is_new: bool) -> optuna.samplers.BaseSampler:
    # Whoever joins or comes back draws apart: with the seed alone it would draw what was drawn before.
    count = len(study.get_trials(deepcopy=False))
    mark = f"{settings.seed} {count} {heartbeat.marks()[heartbeat.PROCESS_TAG]}"
    seed = settings.seed if is_new else zlib.crc32(mark.encode())
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    conditional = any(allowed.when for allowed in settings.space.values())
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=settings.startup_trials, multivariate=True, group=conditional, constant_liar=True
    )
