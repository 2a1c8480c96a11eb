"""An Optuna trial -> its parameters, as `tune.space` describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna

from ultrasound.errors import ParameterError
from ultrasound.params import flatten, override
from ultrasound.scoring.metrics import METRICS
from ultrasound.sections import Params, Range

# A trial may not choose what decides whether trials can be compared, or what machine they run on.
SECTIONS = ("model", "augment", "train")
FIXED = (
    "train.folds", "train.refit", "train.ensemble", "train.resume", "train.seed", "train.device", "train.precision",
    "train.compile",
)  # fmt: skip
# What is of one command or machine: trials may differ in it.
OWN = ("train.folds", "train.refit", "train.ensemble", "train.resume", "train.device", "train.compile")
COMPARED = ("tune.metric", "tune.direction", "tune.folds")  # what makes the values of two trials comparable


def suggest(trial: optuna.Trial, params: Params) -> dict[str, Any]:
    """Draw a value for every key of `tune.space` whose condition holds."""
    now = flatten(params)
    drawn: dict[str, Any] = {}
    for key, allowed in params.tune.space.items():
        if applies(allowed, drawn):
            drawn[key] = _draw(trial, key, allowed, not isinstance(now[key], float))
    return drawn


def defaults(params: Params) -> dict[str, Any]:
    """The values of the searched keys as params.yaml has them, where the space holds them."""
    now = flatten(params)
    found: dict[str, Any] = {}
    for key, allowed in params.tune.space.items():
        if applies(allowed, found) and _holds(allowed, now[key]):
            found[key] = now[key]
    return found


def applies(allowed: Range, drawn: Mapping[str, Any]) -> bool:
    """Whether the keys drawn so far meet the condition of a range."""
    return all(drawn.get(key) == value for key, value in allowed.when.items())


def check(params: Params) -> None:
    """Check that every key may be searched, and that the ends of its range, or its choices, are possible values.

    Raises:
        ParameterError: one may not or is not, the key is unknown, a condition can never hold, or trials would be
            compared by no metric or in the wrong direction.
    """
    name = params.tune.metric
    if name not in METRICS:
        raise ParameterError(f"tune.metric={name}: there are {', '.join(METRICS)}")
    direction = "minimize" if METRICS[name].lower_is_better else "maximize"
    if params.tune.direction != direction:
        raise ParameterError(f"tune.direction={params.tune.direction}, but to be better is to {direction} {name}")
    before: dict[str, Range] = {}
    for key, allowed in params.tune.space.items():
        for value in allowed.choices or (allowed.low, allowed.high):
            override(params, {key: value})
        if key.partition(".")[0] not in SECTIONS or key in FIXED:
            raise ParameterError(f"tune.space: {key} cannot be searched, it would make trials incomparable")
        for other, value in allowed.when.items():
            if other not in before or value not in (before[other].choices or ()):
                raise ParameterError(
                    f"tune.space: {key} waits for {other}={value}, which is no choice of a key that stands before it"
                )
        before[key] = allowed


def fixed_values(params: Params) -> dict[str, Any]:
    """What all trials of a study share: the parameters that are not searched, and the space."""
    values = {
        key: value for key, value in flatten(params, SECTIONS).items()
        if key not in params.tune.space and key not in OWN
    }  # fmt: skip
    values |= {key: value for key, value in flatten(params, ("tune",)).items() if key in COMPARED}
    return values | {f"tune.space.{key}": allowed.model_dump(mode="json") for key, allowed in params.tune.space.items()}


def _draw(trial: optuna.Trial, key: str, allowed: Range, whole: bool) -> Any:
    if allowed.choices:
        return trial.suggest_categorical(key, allowed.choices)
    assert allowed.low is not None  # Range has checked both
    assert allowed.high is not None
    if whole:
        return trial.suggest_int(key, int(allowed.low), int(allowed.high), log=allowed.log)
    return trial.suggest_float(key, allowed.low, allowed.high, log=allowed.log)


def _holds(allowed: Range, value: Any) -> bool:
    if allowed.choices:
        return value in allowed.choices
    assert allowed.low is not None
    assert allowed.high is not None
    return isinstance(value, int | float) and allowed.low <= value <= allowed.high
