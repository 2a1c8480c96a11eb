"""An Optuna trial -> its parameters, as `tune.space` describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna

from ultrasound.errors import ParameterError
from ultrasound.params import flatten, override
from ultrasound.sections import Params, Range
from ultrasound.tracking.classification import CLASSIFICATION
from ultrasound.tracking.segmentation import SEGMENTATION
from ultrasound.tracking.task import WIDTH, Task, parameters

TASKS = (CLASSIFICATION, SEGMENTATION)
# A trial may not choose what decides whether trials can be compared, or what machine they run on.
SECTIONS = ("model", "augment", "train")
FIXED = (
    "train.folds", "train.refit", "train.ensemble", "train.resume", "train.seed", "train.device", "train.precision",
    "train.compile",
)  # fmt: skip
# What is of one command or machine: trials may differ in it.
OWN = ("train.folds", "train.refit", "train.ensemble", "train.resume", "train.device", "train.compile")
COMPARED = ("tune.metric", "tune.direction", "tune.folds")  # what makes the values of two trials comparable


def task(params: Params) -> Task:
    """What is searched for: the task whose metric trials are compared by.

    Raises:
        ParameterError: no task has this metric.
    """
    for each in TASKS:
        if params.tune.metric in each.search.metrics:
            return each
    known = "; or of outlines ".join(", ".join(each.search.metrics) for each in TASKS)
    raise ParameterError(f"tune.metric={params.tune.metric}: there are {known}")


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
        ParameterError: one may not or is not, the key is unknown or means nothing to what is searched for, a condition
            can never hold, or trials would be compared by no metric or in the wrong direction.
    """
    name, search = params.tune.metric, task(params).search
    search.check(params)
    direction = "minimize" if search.metrics[name] else "maximize"
    if params.tune.direction != direction:
        raise ParameterError(f"tune.direction={params.tune.direction}, but to be better is to {direction} {name}")
    before: dict[str, Range] = {}
    for key, allowed in params.tune.space.items():
        for value in allowed.choices or (allowed.low, allowed.high):
            override(params, {key: value})
        if key in search.unused:
            raise ParameterError(f"tune.space: {key} means nothing where {name} is compared; leave it out of the space")
        if (key.partition(".")[0] not in SECTIONS and key != WIDTH) or key in FIXED:
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
        key: value for key, value in parameters(task(params), params).items()
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
