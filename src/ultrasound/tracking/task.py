"""What a training is for: the classifier's and the segmenter's share the loop, the folds and the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray
from torch import nn

from ultrasound.images.loading import Batches
from ultrasound.images.prepared import Prepared
from ultrasound.learning.backbone import Trainable
from ultrasound.learning.loop import EpochResult
from ultrasound.learning.step import Stepper
from ultrasound.params import flatten
from ultrasound.scoring.intervals import Interval
from ultrasound.sections import Params

WIDTH = "segment.width"  # the only one of its section that is part of a training


class Trained(NamedTuple):
    """A finished training.

    Attributes:
        model: with the weights of the chosen epoch.
        chosen: that epoch's result.
        history: every epoch's result.
        rows: positions of the validation images in the prepared data.
        targets: their class numbers.
    """

    model: Any
    chosen: EpochResult
    history: list[EpochResult]
    rows: NDArray[Any]
    targets: NDArray[Any]


class Search(NamedTuple):
    """How a search compares what it tries.

    Attributes:
        metrics: what trials may be compared by -> whether lower is better.
        shown: metrics of a training that is repeated, each with an interval out of fold; the first ranks runs.
        unused: parameters that mean nothing to the task.
        check: raises a ParameterError where a value is impossible for the task.
        of_epoch: metric, class numbers of a fold's validation images, an epoch's result -> its value.
        of_trial: metric, trainings of a trial's folds -> its value out of fold; logs what else there is.
        gain: what `Task.pool` returned for several seeds, and for others of the same -> how much higher the second are.
    """

    metrics: Mapping[str, bool]
    shown: tuple[str, ...]
    unused: tuple[str, ...]
    check: Callable[[Params], None]
    of_epoch: Callable[[str, NDArray[Any], EpochResult], float]
    of_trial: Callable[[str, Sequence[Trained], Prepared], float]
    gain: Callable[[Sequence[Any], Sequence[Any], Prepared], dict[str, Interval]]


class Task(NamedTuple):
    """What a training is for.

    Attributes:
        stepper: what takes its steps.
        score: targets and answers -> metrics of an epoch.
        network: makes the untrained network.
        learns_outlines: whether images come with masks in a training, and in a validation.
        model: the model that networks of several trainings, or of one, are together.
        predict: answers of a model's networks.
        log: metrics, figures and tables of a training, with the active run; given parameters, also its model.
        pool: the same of the trainings of several folds and the model made of them. What it returns has `rows`,
            `values` (fold -> metrics) and `intervals` (metric -> value out of fold, with its ends).
        search: how trials are compared.
    """

    stepper: type[Stepper]
    score: Callable[[Any, Any], Mapping[str, float]]
    network: Callable[[Params], Trainable]
    learns_outlines: Callable[[Params], tuple[bool, bool]]
    model: Callable[[Sequence[nn.Module], Params, Prepared], Any]
    predict: Callable[[nn.Module, Batches], NDArray[Any]]
    log: Callable[[Trained, Prepared, Params | None], dict[str, float]]
    pool: Callable[[dict[int, Trained], dict[int, dict[str, float]], Prepared, Any, Params], Any]
    search: Search


def meaningful(of: Task, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some parameters, dotted key -> value, that mean something to a task."""
    return {key: value for key, value in values.items() if key not in of.search.unused}


def parameters(of: Task, params: Params) -> dict[str, Any]:
    """The parameters that decide what a training of a task gives: dotted key -> value."""
    return meaningful(of, flatten(params, ("model", "augment", "train")) | {WIDTH: params.segment.width})
