"""One training between two epochs: its state, and what an epoch does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ultrasound.errors import stop_if_asked
from ultrasound.images.loading import Batches
from ultrasound.learning import recipe, step
from ultrasound.learning.divergence import REMEDY, DivergedError, LossWatch
from ultrasound.learning.step import Stepper
from ultrasound.sections import Train


class EpochResult(NamedTuple):
    """What one epoch gave.

    Attributes:
        epoch: from 1.
        train, validation: `loss` and what the score function returns. Training figures are collected on the way,
            under augmentation and dropout, and may be the loss alone. `validation` is empty where no image validates.
        learning_rate: of the backbone's last layers in the epoch's last step.
        images_per_second: training images, the epoch's validation left out.
        is_best: the monitored validation metric has not been better before.
        probabilities: (validation images, ...), the answers of the task; where they are large, there are none in an
            epoch of a checkpoint that can no longer be chosen.
    """

    epoch: int
    train: Mapping[str, float]
    validation: Mapping[str, float]
    learning_rate: float
    images_per_second: float
    is_best: bool
    probabilities: NDArray[Any]


class Loop:
    """A training between two epochs: all that a checkpoint holds, and what it takes to run the next epoch."""

    def __init__(
        self, stepper: Stepper, training: Batches, validation: Batches | None, settings: Train,
        on_step: Callable[[], object],
    ) -> None:  # fmt: skip
        self.stepper, self.network, self.device = stepper, stepper.network, stepper.device
        self.training, self.validation, self.settings, self.on_step = training, validation, settings, on_step
        self.optimizer = stepper.optimizer
        self.rates = recipe.Rates(self.optimizer.optimizer, settings, len(training))
        self.average = recipe.moving_average(stepper.learning, settings.ema)
        self.epoch, self.since_best, self.best = 0, 0, -math.inf
        self.best_weights: dict[str, Tensor] | None = None
        self.history: list[EpochResult] = []

    @property
    def has_stalled(self) -> bool:
        """Whether the patience is used up, where the best epoch is to be chosen."""
        return self.settings.choose == "best" and self.since_best >= self.settings.patience

    def run_epoch(self) -> EpochResult:
        """Train on every image once, then validate.

        Raises:
            DivergedError: the loss is no longer finite.
            TooLargeError: the GPU's memory is too small for the batch.
        """
        self.epoch += 1
        frozen = self.epoch <= self.settings.freeze
        self.stepper.freeze(frozen)
        started = time.perf_counter()
        self.network.train()
        self.network.backbone.train(not frozen)
        watch, steps, targets = LossWatch(), [], []
        for number, (images, target) in enumerate(self.training.shuffled(self.settings.seed, self.epoch), 1):
            done = (self.epoch - 1) * len(self.training) + number
            _seed(self.settings.seed, done)
            rate = self.rates.set(done - 1)
            taken = self.stepper.take(images, target)
            watch.see(taken.loss, self.epoch, number, rate)
            if self.average:
                self.average.update(self.stepper.learning, done)
            steps.append(taken)
            targets.append(target)
            self.on_step()
            stop_if_asked()
        watch.end()
        seen = torch.cat(targets)
        # It waits for the device, so the clock is right.
        train = {"loss": step.mean([(taken.loss, taken.weight) for taken in steps])}
        speed = len(seen) / (time.perf_counter() - started)
        train |= self.stepper.scores(steps, seen)
        for name in steps[0].more:
            train[name] = step.mean([taken.more[name] for taken in steps])
        validation, probabilities = self._validate()
        self._require_finite(validation, rate)
        is_best = bool(validation) and validation[self.stepper.monitor] > self.best
        if is_best:
            self.best, self.since_best = validation[self.stepper.monitor], 0
            if self.settings.choose == "best":
                self.best_weights = _clone(self._network().state_dict())
        elif validation and not frozen:  # no plateau before the backbone learns
            self.since_best += 1
            self.rates.no_better(self.since_best)
        result = EpochResult(self.epoch, train, validation, rate, speed, is_best, probabilities)
        self.history.append(result)
        self.history = self._without_old_answers()
        return result

    def finish(self) -> None:
        """Give the network the weights of the chosen epoch."""
        self.network.load_state_dict(self.best_weights or _clone(self._network().state_dict()))

    def state(self) -> dict[str, Any]:
        """What `resume` needs. Random numbers follow from epoch and step, so no generator's state is kept."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.device.scaler.state_dict() if self.device.scaler else None,
            "second_head": head.state_dict() if (head := self.stepper.second_head) else None,
            "average": self.average.module.state_dict() if self.average else None,
            "best_weights": self.best_weights,
            "numbers": {name: getattr(self, name) for name in _NUMBERS},
            "rate_scale": self.rates.scale,
            "history": [
                {**result._asdict(), "probabilities": torch.from_numpy(result.probabilities)} for result in self.history
            ],
        }

    def resume(self, state: dict[str, Any] | None) -> Iterator[EpochResult]:
        """Take up the state of a checkpoint, if there is one; yields the epochs that led to it."""
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.device.scaler:
            self.device.scaler.load_state_dict(state["scaler"])
        if self.stepper.second_head:
            self.stepper.second_head.load_state_dict(state["second_head"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
        self.best_weights, self.rates.scale = state["best_weights"], state["rate_scale"]
        for name, value in state["numbers"].items():
            setattr(self, name, value)
        self.history = [
            EpochResult(**{**result, "probabilities": result["probabilities"].numpy()}) for result in state["history"]
        ]
        yield from self.history

    def _require_finite(self, validation: Mapping[str, float], rate: float) -> None:
        """An epoch whose last step broke the weights has finite losses; it must not become a checkpoint or a model."""
        weights = (weight.detach().sum() for weight in self._network().parameters())
        if not math.isfinite(validation["loss"] if validation else float(torch.stack([*weights]).sum())):
            where = f"after epoch {self.epoch}, at learning rate {rate:.2g}"
            raise DivergedError(f"the weights are no longer finite {where}: {REMEDY}")

    def _answering(self) -> nn.Module:
        """What answers, a second head included: the moving average, if there is one."""
        learning: nn.Module = self.average.module if self.average else self.stepper.learning
        return learning

    def _network(self) -> nn.Module:
        """The network of what answers."""
        return self.stepper.network_of(self._answering())

    def _without_old_answers(self) -> list[EpochResult]:
        """The history without the answers of epochs that cannot be chosen any more, where those are large."""
        if self.stepper.has_small_answers:
            return self.history
        last_best = max((result.epoch for result in self.history if result.is_best), default=0)
        return [
            result if result.epoch in (last_best, self.epoch)
            else result._replace(probabilities=result.probabilities[:0])
            for result in self.history
        ]  # fmt: skip

    def _validate(self) -> tuple[dict[str, float], NDArray[Any]]:
        if self.validation is None:
            return {}, np.empty(0)
        return self.stepper.validate(self._answering(), self.validation)


_NUMBERS = ("epoch", "since_best", "best")


def _seed(seed: int, step: int) -> None:
    # Each step has its own: what is drawn depends neither on the steps before nor on how many processes share it.
    drawn = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
    torch.manual_seed(drawn)
    np.random.seed(drawn)


def _clone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
