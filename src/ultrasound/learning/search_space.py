"""An Optuna trial -> its parameters, as `tune.space` describes them."""

from __future__ import annotations

from typing import Any

import optuna

from ultrasound.errors import ParameterError
from ultrasound.params import flatten, override
from ultrasound.sections import Params, Range

# A trial may not choose what decides whether trials can be compared, or what machine they run on.
SECTIONS = ("model", "augment", "train")
FIXED = (
    "train.folds", "train.refit", "train.ensemble", "train.resume", "train.seed", "train.device", "train.precision",
    "train.compile",
)  # fmt: skip


def suggest(trial: optuna.Trial, params: Params) -> Params:
    """Draw a value for every key of `tune.space` and lay them over the parameters."""
    now = flatten(params)
    drawn = {key: _draw(trial, key, allowed, isinstance(now[key], int)) for key, allowed in params.tune.space.items()}
    return override(params, drawn)


def check(params: Params) -> None:
    """Check that every key may be searched, and that the ends of its range, or its choices, are possible values.

    Raises:
        ParameterError: one may not or is not, or the key is unknown.
    """
    for key, allowed in params.tune.space.items():
        for value in allowed.choices or (allowed.low, allowed.high):
            override(params, {key: value})
        if key.partition(".")[0] not in SECTIONS or key in FIXED:
            raise ParameterError(f"tune.space: {key} cannot be searched, it would make trials incomparable")


def fixed_values(params: Params) -> dict[str, Any]:
    """What all trials of a study share: the parameters that are not searched, and the space."""
    values = {key: value for key, value in flatten(params, SECTIONS).items() if key not in params.tune.space}
    return values | {f"tune.space.{key}": allowed.model_dump(mode="json") for key, allowed in params.tune.space.items()}


def _draw(trial: optuna.Trial, key: str, allowed: Range, whole: bool) -> Any:
    if allowed.choices:
        return trial.suggest_categorical(key, allowed.choices)
    assert allowed.low is not None  # Range has checked both
    assert allowed.high is not None
    if whole:
        return trial.suggest_int(key, int(allowed.low), int(allowed.high), log=allowed.log)
    return trial.suggest_float(key, allowed.low, allowed.high, log=allowed.log)
