"""A trial: its parameters drawn, trained on each fold in one child run, given up early where it does not pay."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import optuna
import torch
from numpy.typing import NDArray

from ultrasound.errors import ParameterError, signals_wait
from ultrasound.images import splitting
from ultrasound.images.prepared import Prepared
from ultrasound.learning.checkpoints import Checkpoints
from ultrasound.learning.divergence import DivergedError
from ultrasound.learning.loop import EpochResult
from ultrasound.learning.memory import TooLargeError
from ultrasound.params import override
from ultrasound.search import space, study
from ultrasound.search.pruning import fold_end
from ultrasound.search.workers import TrialError
from ultrasound.sections import Params
from ultrasound.tracking import runs, training
from ultrasound.tracking.task import parameters

RETRY_OF = "retry_of"  # tag of its run


def name(number: int) -> str:
    """Name of the child run of a trial."""
    return f"trial-{number:03d}"


def run(
    trial: optuna.Trial, params: Params, data: Prepared, tags: Mapping[str, str], parent_id: str | None, state: Path
) -> float:  # fmt: skip
    """Train a trial's parameters on the folds of `tune.folds`; its value is `tune.metric` out of fold.

    A trial that repeats one that was stopped on this machine goes on after the last epoch of that one.

    Args:
        parent_id: the tuning run, where another process holds it.
        state: folder of the search's checkpoints.

    Raises:
        TrialPruned: its epochs or folds are too far behind those of the trials before.
        TrialError: the loss is no longer finite, or the GPU's memory is too small.
    """
    with signals_wait():
        drawn, before = space.suggest(trial, params), study.retried(trial)
    try:
        chosen = override(params, drawn)
    except ParameterError as error:  # each value is possible, not all of them together
        raise TrialError(str(error)) from error
    shown = parameters(space.task(params), chosen) | {"train.folds": list(params.tuned_folds)}
    origin = trial.user_attrs.get(study.ORIGIN, params.tune.sampler)
    about = {**tags, "trial": str(trial.number), study.ORIGIN: origin}
    if before is not None:
        about[RETRY_OF] = name(before)
    ended: Exception | None = None
    with runs.child("trial", name(trial.number), shown, about, parent_id) as run_id:
        with signals_wait():
            trial.set_user_attr(study.RUN, run_id)
        try:
            with _kept_if_stopped(state / name(trial.number if before is None else before)) as folder:
                value = _folds(trial, chosen, data, folder)
        except optuna.TrialPruned as pruned:
            ended = pruned  # raised again below: a pruned trial is a finished run, not a failed one
            runs.tag(trial_state="pruned", trial_reason=str(pruned))
        except (DivergedError, TooLargeError, ParameterError, torch.OutOfMemoryError) as error:
            runs.tag(trial_state="failed", trial_reason=str(error))
            raise TrialError(str(error)) from error
        else:
            runs.tag(trial_state="complete")
    if ended:
        raise ended
    return value


@contextmanager
def _kept_if_stopped(folder: Path) -> Iterator[Path]:
    """Checkpoints for the next who runs this trial; not needed when it has ended by itself."""
    try:
        yield folder
    except Exception:  # Ctrl-C is none
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _is_hopeless(trial: optuna.Trial, value: float, step: int) -> bool:
    """Report a value; says whether the trial is to be given up."""
    with signals_wait():
        trial.report(value, step)
        return trial.should_prune()


def _folds(trial: optuna.Trial, params: Params, data: Prepared, state: Path) -> float:
    metric, task, parts = params.tune.metric, space.task(params), []
    numbers = training.class_numbers(params, data)
    for number, fold in enumerate(params.tuned_folds):
        targets = numbers[data.rows(splitting.DEVELOPMENT, fold)]

        def report(result: EpochResult, targets: NDArray[np.int64] = targets) -> None:
            value = task.search.of_epoch(metric, targets, result)
            is_last = result.epoch == fold_end(params, 0)  # that is the fold's end, reported below
            if not is_last and _is_hopeless(trial, value, result.epoch):
                raise optuna.TrialPruned(
                    f"epoch {result.epoch} of the first fold: {metric} {value:.3f} is behind "
                    f"other trials ({params.tune.prune_epochs})"
                )

        trained = training.train(
            params, data, f"{name(trial.number)}, fold {fold}", fold, prefix=f"fold_{fold}/" if number else "",
            checkpoints=Checkpoints(state / f"fold-{fold}") if params.train.resume else None,
            on_epoch=report if number == 0 else lambda result: None, task=task,
        )  # fmt: skip
        parts.append(trained)
        score = task.search.of_epoch(metric, trained.targets, trained.chosen)
        runs.log_metrics({metric: score}, "folds", step=fold)
        is_last = number + 1 == len(params.tuned_folds)  # nothing is saved by giving up there
        if _is_hopeless(trial, score, fold_end(params, number)) and not is_last:
            raise optuna.TrialPruned(f"after {number + 1} folds: {metric} is behind the best trial's (Wilcoxon)")
    value = task.search.of_trial(metric, parts, data)
    if not np.isfinite(value):
        raise DivergedError(f"{metric} out of fold is {value}")
    return value
