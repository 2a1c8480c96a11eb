"""The epoch loop: a generator that yields one result an epoch and logs nothing."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from numpy.typing import NDArray
from torch import Tensor, nn

from ultrasound.errors import InputError, ParameterError
from ultrasound.images.augmentation import Augmentation
from ultrasound.images.loading import Batches
from ultrasound.learning.backbone import Network
from ultrasound.learning.classifier import softmax
from ultrasound.params import Augment, Train

# (class numbers (n,), probabilities (n, classes)) -> metrics by name
Score = Callable[[NDArray[np.int64], NDArray[np.float64]], Mapping[str, float]]

PLATEAU_FACTOR = 0.3


class DivergedError(InputError):
    """The loss is no longer finite."""


class EpochResult(NamedTuple):
    """What one epoch gave.

    Attributes:
        epoch: from 1.
        train, validation: `loss` and what the score function returns. Training figures are collected on the way,
            under augmentation and dropout.
        learning_rate: of the epoch's last step.
        images_per_second: training images, the epoch's validation left out.
        is_best: the monitored validation metric has not been better before.
        probabilities: (validation images, classes).
    """

    epoch: int
    train: Mapping[str, float]
    validation: Mapping[str, float]
    learning_rate: float
    images_per_second: float
    is_best: bool
    probabilities: NDArray[np.float64]


def accelerator(train: Train) -> Accelerator:
    """Set up device and precision, and seed every random generator.

    Raises:
        ParameterError: CUDA or half precision is asked for where there is none.
    """
    if train.device == "cuda" and not torch.cuda.is_available():
        raise ParameterError("train.device=cuda: this machine has no usable CUDA GPU; set train.device to cpu or auto")
    use_cpu = train.device == "cpu" or not torch.cuda.is_available()
    if train.precision == "fp16" and use_cpu:
        raise ParameterError("train.precision=fp16 needs CUDA; on a CPU take fp32 or bf16")
    precision = {"auto": "no" if use_cpu else "bf16", "fp32": "no"}.get(train.precision, train.precision)
    set_seed(train.seed)
    return Accelerator(mixed_precision=precision, cpu=use_cpu)


def fit(
    network: Network,
    training: Batches,
    validation: Batches,
    settings: Train,
    augment: Augment,
    score: Score,
    device: Accelerator,
    monitor: str = "macro_f1",
    on_step: Callable[[], object] = lambda: None,
) -> Iterator[EpochResult]:
    """Train `network` in place; when the generator is exhausted, the network holds the weights of the best epoch.

    Training stops early after `settings.patience` epochs without a better `monitor` on the validation images.

    Args:
        score: turns class numbers and probabilities into metrics.
        monitor: the validation metric that chooses the epoch; larger is better.
        on_step: called after every step, for a progress bar.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    # Convolutions on a CPU and on tensor cores are faster where the channels lie together.
    model, optimizer = device.prepare(network.to(memory_format=torch.channels_last), optimizer)
    schedule = _Schedule(optimizer.optimizer, settings, len(training))
    loss_of = nn.CrossEntropyLoss(weight=_class_weights(training.targets, network.classes, settings.class_weights))
    augmentation = Augmentation(augment.rotation, augment.flip, augment.contrast)
    best, best_state, since_best = -math.inf, copy.deepcopy(network.state_dict()), 0
    for epoch in range(1, settings.epochs + 1):
        started = time.perf_counter()
        model.train()
        losses, logits, targets = [], [], []
        for step, (images, target) in enumerate(training.shuffled(settings.seed, epoch), 1):
            rate = schedule.step()
            output = model(augmentation(images.float() / 255))
            loss = loss_of(output, target)
            if not torch.isfinite(loss):
                raise DivergedError(
                    f"the loss is {loss.item()} in epoch {epoch}, step {step}, at learning rate {rate:.2g}: "
                    "lower train.learning_rate"
                )
            optimizer.zero_grad()
            device.backward(loss)
            optimizer.step()
            losses.append(loss.detach() * len(target))
            logits.append(output.detach())
            targets.append(target)
            on_step()
        seen = torch.cat(targets)
        train_probabilities = softmax(torch.cat(logits))  # waits for the device, so the clock is right
        speed = len(seen) / (time.perf_counter() - started)
        train_metrics = {
            "loss": float(torch.stack(losses).sum()) / len(seen),
            **score(_numpy(seen), train_probabilities),
        }
        probabilities, validation_loss = _evaluate(model, validation, loss_of)
        metrics = {"loss": validation_loss, **score(_numpy(validation.targets), probabilities)}
        is_best = metrics[monitor] > best
        if is_best:
            best, best_state, since_best = metrics[monitor], copy.deepcopy(network.state_dict()), 0
        else:
            since_best += 1
            schedule.no_better(since_best)
        yield EpochResult(epoch, train_metrics, metrics, rate, speed, is_best, probabilities)
        if since_best >= settings.patience:
            break
    device.unwrap_model(model, keep_fp32_wrapper=False)  # takes Accelerate's autocast off the network again
    network.load_state_dict(best_state)


def _evaluate(model: nn.Module, batches: Batches, loss_of: nn.Module) -> tuple[NDArray[np.float64], float]:
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(images.float() / 255) for images, _ in batches.in_order()]).float()
        return softmax(logits), float(loss_of(logits, batches.targets))


class _Schedule:
    """Linear warm-up, then a cosine to zero, steps down on plateaus, or a constant rate."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: Train, steps: int) -> None:
        self.optimizer, self.settings = optimizer, settings
        self.warmup, self.total = settings.warmup * steps, settings.epochs * steps
        self.done, self.scale = 0, 1.0

    def step(self) -> float:
        """Set and return the learning rate of the next training step."""
        factor = self.scale
        if self.done < self.warmup:
            factor = (self.done + 1) / (self.warmup + 1)
        elif self.settings.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * (self.done - self.warmup) / max(1.0, self.total - self.warmup)))
        self.done += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        return self.settings.learning_rate * factor

    def no_better(self, epochs: int) -> None:
        """Hear that so many epochs brought nothing better."""
        if self.settings.schedule == "plateau" and epochs % max(1, self.settings.patience // 3) == 0:
            self.scale *= PLATEAU_FACTOR


def _class_weights(targets: Tensor, classes: int, kind: str) -> Tensor | None:
    if kind == "none":
        return None
    counts = torch.bincount(targets, minlength=classes).float()
    return counts.sum() / (classes * counts.clamp(min=1))


def _numpy(targets: Tensor) -> NDArray[np.int64]:
    array: NDArray[np.int64] = targets.cpu().numpy()
    return array
