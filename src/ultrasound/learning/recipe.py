"""What a recipe of training is made of, from timm's factories: optimizer, learning rates, moving average, mixing, loss.

Sources: AdamW (Loshchilov and Hutter, ICLR 2019); cosine schedule (the same, ICLR 2017); layer-wise learning rates
(Clark et al., ELECTRA, ICLR 2020); label smoothing (Szegedy et al., CVPR 2016); mixup (Zhang et al., ICLR 2018); CutMix
(Yun et al., ICCV 2019); moving average of weights (Polyak and Juditsky, SIAM J. Control and Optimization 30, 1992).
"""

from __future__ import annotations

import timm.data
import timm.optim
import timm.scheduler
import timm.utils
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ultrasound.learning.backbone import Trainable
from ultrasound.sections import Augment, Train

PLATEAU_FACTOR = 0.3
WARMUP_START = 0.05  # of the peak learning rate


def optimizer(
    network: Trainable, settings: Train, *, fused: bool, second_head: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Adam or AdamW; layers and heads with their own learning rates, no decay of biases and norms."""
    decay = settings.weight_decay
    skipped: set[str] = getattr(network.backbone, "no_weight_decay", set)()
    groups = (
        timm.optim.param_groups_layer_decay(network.backbone, decay, skipped, layer_decay=settings.layer_decay)
        if settings.layer_decay < 1
        else timm.optim.param_groups_weight_decay(network.backbone, decay, skipped)
    )
    for head in filter(None, (second_head, network.head)):
        found = timm.optim.param_groups_weight_decay(head, decay)
        groups += [{**group, "lr_scale": settings.head_rate} for group in found]
    made: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
        groups, settings.optimizer, settings.learning_rate, decay, fused=fused
    )
    return made


class Rates:
    """The learning rate of every step: constant while the backbone is frozen; then warm-up, then the schedule.

    Args:
        optimizer: its groups are set, each times its `lr_scale`.
        steps: of an epoch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: Train, steps: int) -> None:
        self.optimizer, self.settings = optimizer, settings
        self.frozen = settings.freeze * steps
        self.scale = 1.0  # lowered on plateaus
        epochs = max(1, settings.epochs - settings.freeze)  # 1 where the head alone learns
        warmup = min(settings.warmup, epochs / 2)
        # timm's own plateau schedule cannot be resumed; a constant one, scaled, can.
        sched = "cosine" if settings.schedule == "cosine" else "constant"
        self.schedule, _ = timm.scheduler.create_scheduler_v2(
            optimizer, sched, epochs - warmup, warmup_epochs=warmup, warmup_prefix=True,
            warmup_lr=WARMUP_START * settings.learning_rate, step_on_epochs=False, updates_per_epoch=steps,
        )  # fmt: skip

    def set(self, step: int) -> float:
        """Set the learning rates for a step, counted from 0 over all epochs; returns that of the last layers."""
        if step < self.frozen:
            self.schedule.update_groups(self.schedule.base_values)
        else:
            self.schedule.step_update(step - self.frozen)
        for group in self.optimizer.param_groups:
            group["lr"] *= self.scale
        group = self.optimizer.param_groups[-1]
        return float(group["lr"] / group["lr_scale"])

    def no_better(self, epochs: int) -> None:
        """Hear that so many epochs brought nothing better: a plateau, after a third of the patience."""
        if self.settings.schedule == "plateau" and epochs % max(1, self.settings.patience // 3) == 0:
            self.scale *= PLATEAU_FACTOR


def moving_average(network: nn.Module, decay: float) -> timm.utils.ModelEmaV3 | None:
    """The average of the weights over the steps, shorter in the first ones; None for decay 0."""
    return timm.utils.ModelEmaV3(network, decay, use_warmup=True) if decay else None


class Mixing:
    """Mixup and CutMix of a batch, or neither.

    Attributes:
        active: whether images are mixed, so that a batch has no single true classes.
    """

    def __init__(self, augment: Augment, classes: int, smoothing: float) -> None:
        self.classes, self.smoothing = classes, smoothing
        self.active = augment.mixup > 0 or augment.cutmix > 0
        if self.active:
            self.mix = timm.data.Mixup(augment.mixup, augment.cutmix, label_smoothing=smoothing, num_classes=classes)

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 1, height, width) images and (n,) class numbers -> images and (n, classes) target shares."""
        if not self.active:
            return images, smooth(targets, self.classes, self.smoothing)
        even = len(images) - len(images) % 2  # images are mixed in pairs; an odd one is left out
        mixed, shares = self.mix(images[:even], targets[:even])
        return mixed, shares


def smooth(targets: Tensor, classes: int, smoothing: float) -> Tensor:
    """Class numbers (n,) -> target shares (n, classes) with `smoothing` spread over all classes."""
    return F.one_hot(targets, classes).float() * (1 - smoothing) + smoothing / classes


def class_weights(targets: Tensor, classes: int, kind: str | tuple[float, ...]) -> Tensor:
    """Weight of each class in the loss: (classes,). `auto`: inverse to its frequency, 1 on average over the images."""
    if kind == "auto":
        counts = torch.bincount(targets, minlength=classes).float()
        return counts.sum() / (classes * counts.clamp(min=1))
    return torch.tensor([1.0] * classes if kind == "none" else kind, device=targets.device)


def loss(logits: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy, summed over n images with target shares (n, classes).

    Divided by the sum of `shares * weights`, also over the processes that share a batch, it is the weighted mean.
    """
    return -(shares * weights * F.log_softmax(logits.float(), dim=1)).sum()
