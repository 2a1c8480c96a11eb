"""A tracked training for each of several folds: answers out of fold, and one model at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ultrasound.images.prepared import Prepared
from ultrasound.learning.checkpoints import Checkpoints
from ultrasound.sections import Params
from ultrasound.tracking import runs, training
from ultrasound.tracking.classification import CLASSIFICATION
from ultrasound.tracking.task import Task, Trained, parameters


def cross_validate(
    params: Params, prepared: Prepared, state: Path, *, with_models: bool = True, task: Task = CLASSIFICATION
) -> Any:
    """Train for each of `params.folds` in a child of the active run, then make the model; log all of it.

    Args:
        state: folder of the run's checkpoints, a folder a child.
        with_models: keep the model of every fold, where none is made of them all.
        task: what is learnt.

    Returns:
        What `task.pool` returns.
    """
    folds: dict[int, Trained] = {}
    values: dict[int, dict[str, float]] = {}
    keep = with_models and not (params.train.refit or params.train.ensemble)
    shown = parameters(task, params)
    for fold in params.folds:
        training.require_outlines(task, params, prepared, fold)  # all of them, before hours go into the first
    for fold in params.folds:
        name = f"fold-{fold}"
        with runs.child("fold", name, {**shown, "train.folds": fold}, {"fold": str(fold)}):
            folds[fold] = training.train(params, prepared, name, fold, checkpoints=Checkpoints(state / name), task=task)
            values[fold] = task.log(folds[fold], prepared, params if keep else None)
    model = None
    if params.train.ensemble:
        members = [trained.model.network.members[0].cpu() for trained in folds.values()]
        model = task.model(members, params, prepared)
    elif params.train.refit:
        epochs = round(np.mean([trained.chosen.epoch for trained in folds.values()]))
        with runs.child("refit", "refit", {**shown, "train.folds": "none"}, {"epochs": str(epochs)}):
            refitted = training.train(
                params, prepared, "refit", None, checkpoints=Checkpoints(state / "refit"), until=epochs, task=task
            )
            task.log(refitted, prepared, None)
        model = refitted.model
    return task.pool(folds, values, prepared, model, params)
