"""The epoch loop: a generator that yields one result an epoch and logs nothing. It can be killed and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ultrasound.errors import ParameterError
from ultrasound.images.loading import Batches
from ultrasound.learning import memory, processes
from ultrasound.learning.backbone import Trainable
from ultrasound.learning.checkpoints import Checkpoints
from ultrasound.learning.classifying import Classifying
from ultrasound.learning.loop import EpochResult, Loop
from ultrasound.learning.step import Stepper
from ultrasound.sections import Augment, Train


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
    if use_cpu:
        memory.keep_freed()
    else:
        torch.backends.cudnn.benchmark = True  # shapes do not change
    return Accelerator(mixed_precision=precision, cpu=use_cpu)


def fit(
    network: Trainable,
    training: Batches,
    validation: Batches | None,
    settings: Train,
    augment: Augment,
    score: Any,
    device: Accelerator,
    checkpoints: Checkpoints | None = None,
    until: int | None = None,
    on_step: Callable[[], object] = lambda: None,
    task: type[Stepper] = Classifying,
) -> Iterator[EpochResult]:
    """Train `network` in place; when the generator is exhausted, the network holds the weights of the chosen epoch.

    Every random number follows from seed, epoch and step, and every epoch ends with a checkpoint. A call that finds
    checkpoints yields their epochs again, then goes on after them as if it had never been stopped.

    Training stops early after `settings.patience` epochs without a better validation metric, the task's `monitor`, if
    the best epoch is to be chosen.

    Args:
        validation: None to train on all there is; the last epoch is kept then.
        score: turns targets and answers of the task into metrics.
        until: the epoch to stop after, on the schedule of `settings.epochs`.
        on_step: called after every step, for a progress bar.
        task: what is learnt.

    Raises:
        DivergedError: the loss is no longer finite.
        CheckpointError: a checkpoint cannot be written.
        TooLargeError: the GPU's memory is too small for the batch.
    """
    stepper = task(network, training, settings, augment, score, device)
    loop = Loop(stepper, training, validation, settings, on_step)
    found = checkpoints.load() if checkpoints and device.is_main_process else None
    yield from loop.resume(processes.from_main(device, found))
    try:
        while loop.epoch < (until or settings.epochs) and not loop.has_stalled:
            result = loop.run_epoch()
            if checkpoints and device.is_main_process:
                checkpoints.save(result.epoch, loop.state())
            yield result
    finally:  # also when stopped: what is saved is safe before the run is closed
        if checkpoints:
            checkpoints.wait()
    loop.finish()
