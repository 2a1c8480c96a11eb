"""An Optuna trial -> overrides of the parameters, as `tune.space` describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna

from ultrasound.params import Params, Range, override


def suggest(trial: optuna.Trial, space: Mapping[str, Range]) -> dict[str, Any]:
    """Draw a value for every key of the space: dotted parameter -> value."""
    return {key: _draw(trial, key, allowed) for key, allowed in space.items()}


def check(params: Params) -> None:
    """Check that the ends of every range, and every choice, are possible values of their parameter.

    Raises:
        ParameterError: one is not, or the key is unknown.
    """
    for key, allowed in params.tune.space.items():
        for value in allowed.choices or (allowed.low, allowed.high):
            override(params, {key: value})


def _draw(trial: optuna.Trial, key: str, allowed: Range) -> Any:
    if allowed.choices:
        return trial.suggest_categorical(key, allowed.choices)
    assert allowed.low is not None  # Range has checked both
    assert allowed.high is not None
    return trial.suggest_float(key, allowed.low, allowed.high, log=allowed.log)
