"""One tracked training: what `train` does once or for every fold, and `tune` for every trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from tqdm import tqdm

from ultrasound.errors import InputError
from ultrasound.images import splitting
from ultrasound.images.augmentation import Augmentation
from ultrasound.images.loading import Batches
from ultrasound.images.prepared import Prepared
from ultrasound.learning import backbone, fitting, memory, processes
from ultrasound.learning.backbone import Trainable
from ultrasound.learning.checkpoints import Checkpoints
from ultrasound.learning.loop import EpochResult
from ultrasound.scoring import figures
from ultrasound.sections import Params
from ultrasound.tracking import runs
from ultrasound.tracking.classification import CLASSIFICATION
from ultrasound.tracking.task import Task, Trained

EVALUATION_BATCH = 64
EXAMPLES, VIEWS = 4, 6  # augmented examples: images, and views of each


def train(
    params: Params,
    prepared: Prepared,
    title: str,
    fold: int | None,
    *,
    checkpoints: Checkpoints | None = None,
    until: int | None = None,
    prefix: str = "",
    on_epoch: Callable[[EpochResult], object] = lambda result: None,
    task: Task = CLASSIFICATION,
) -> Trained:
    """Train on all development folds but `fold`, validate on that one, log every epoch with the active run.

    Args:
        title: of the progress bar.
        fold: None to train on all development images and validate on none.
        checkpoints: where to continue from and to save to.
        until: the epoch to stop after.
        prefix: of the metrics' names, where one run holds several trainings.
        on_epoch: called after each epoch is logged; may raise to stop.
        task: what is learnt.

    Raises:
        InputError: the data lacks a class or the fold, the loss is no longer finite, or a checkpoint can't be written.
        ParameterError: a model, weights or device that cannot be had.
    """
    settings, targets = params.train, class_numbers(params, prepared)
    device = fitting.accelerator(settings)
    network = task.network(params)
    backbone.require_size(network, prepared.preparation.size)
    network = network.to(device.device)
    batch_size = _fitting_batch(network, prepared, device) if settings.batch_size == "auto" else settings.batch_size
    rows = prepared.rows(splitting.DEVELOPMENT, fold, without=fold is not None)
    held_out = prepared.rows(splitting.DEVELOPMENT, fold) if fold is not None else np.empty(0, np.int64)
    for context, chosen in (("training", rows), ("validation", held_out)):
        if len(chosen):
            runs.log_dataset(prepared, chosen, params.data.source, context)
    require_outlines(task, params, prepared, fold)
    learns, is_validated = task.learns_outlines(params)

    def batches(chosen: NDArray[np.int64], size: int, *, with_masks: bool) -> Batches:
        known = (prepared.masks, prepared.samples["outlined"].to_numpy(dtype=np.bool_)) if with_masks else (None, None)
        return Batches(prepared.images, targets, size, device.device, chosen, masks=known[0], outlined=known[1])

    training = batches(rows, batch_size, with_masks=learns)
    validation = batches(held_out, EVALUATION_BATCH, with_masks=is_validated) if len(held_out) else None
    history: list[EpochResult] = []
    best: EpochResult | None = None
    known = runs.logged_epochs(prefix)
    steps = (until or settings.epochs) * len(training)
    with tqdm(total=steps, desc=title, unit="step", disable=None if processes.is_main() else True) as bar:
        for result in fitting.fit(
            network, training, validation, settings, params.augment, task.score, device, checkpoints,
            until=until, on_step=bar.update, task=task.stepper,
        ):  # fmt: skip
            last, best = result, result if result.is_best else best
            history.append(result if task.stepper.has_small_answers
                           else result._replace(probabilities=result.probabilities[:0]))  # fmt: skip
            bar.update(result.epoch * len(training) - bar.n)  # epochs of a checkpoint took no steps
            if result.epoch not in known:
                runs.log_epoch(result, prefix)
            shown = {"epoch": result.epoch, "training loss": result.train["loss"], **result.validation}
            bar.set_postfix(shown)
            on_epoch(result)
    chosen_one = last if best is None or settings.choose == "last" else best
    model = task.model([network], params, prepared)
    if validation and device.mixed_precision != "no":  # what is reported is what the saved model says
        chosen_one = chosen_one._replace(probabilities=task.predict(model.network, validation))
    return Trained(model, chosen_one, history, held_out, targets[held_out])


def require_outlines(task: Task, params: Params, prepared: Prepared, fold: int | None) -> None:
    """Check that there is what outlines are learnt from, and what they are scored by.

    Args:
        fold: what is held out; None for nothing.

    Raises:
        InputError: no training image has a mask, or no image of the fold.
    """
    learns, is_validated = task.learns_outlines(params)
    rows = prepared.rows(splitting.DEVELOPMENT, fold, without=fold is not None)
    if learns and not prepared.masks[rows].any():
        way_on = "" if is_validated else "; train.segmentation_weight=0 needs none"
        raise InputError(f"no training image has a lesion mask: add masks{way_on}")
    if is_validated and fold is not None:
        held_out = prepared.rows(splitting.DEVELOPMENT, fold)
        if not prepared.samples["outlined"].to_numpy()[held_out].any():
            raise InputError(
                f"no image of fold {fold} has a lesion mask, so that its outlines cannot be scored: add masks"
            )


def class_numbers(params: Params, prepared: Prepared) -> NDArray[np.int64]:
    """Class number of every prepared image: (n,), in the order of `data.classes`.

    Raises:
        InputError: the prepared images were made otherwise or have other classes than the parameters say.
    """
    labels = params.data.classes
    wanted, made = params.preprocess.model_dump(), dataclasses.asdict(prepared.preparation)
    for name, value in wanted.items():
        if made[name] != value:
            raise InputError(
                f"preprocess.{name} is {value}, but build/prepared was made with {made[name]}: run `dvc repro`"
            )
    if set(labels) != (found := set(prepared.samples["label"])):
        raise InputError(f"data.classes says {', '.join(labels)}, but build/prepared holds {', '.join(sorted(found))}")
    return prepared.samples["label"].map(labels.index).to_numpy(dtype=np.int64)


def log_examples(params: Params, prepared: Prepared) -> None:
    """Log a figure of training images as the network sees them: each as prepared, then under several augmentations."""
    labels = prepared.samples["label"].to_numpy()
    rows = prepared.rows(splitting.DEVELOPMENT)
    chosen = [rows[labels[rows] == label][number // len(params.data.classes)]
              for number, label in zip(range(EXAMPLES), params.data.classes * EXAMPLES, strict=False)]  # fmt: skip
    images = torch.from_numpy(prepared.images[np.array(chosen)]).unsqueeze(1).float() / 255
    augmentation = Augmentation(params.augment)
    torch.manual_seed(params.train.seed)
    views = torch.stack([images, *(augmentation(images) for _ in range(VIEWS))], dim=1)[:, :, 0].numpy()
    runs.log_figure(figures.augmented(views, [str(labels[row]) for row in chosen]), "augmented_examples")


def _fitting_batch(network: Trainable, prepared: Prepared, device: Accelerator) -> int:
    # A run that is continued keeps its batch, however much memory is free today.
    known = processes.from_main(device, runs.tag_of_active("batch_size"))
    fits = int(known) if known else memory.batch_that_fits(network, prepared.preparation.size, device)
    least = processes.least(device, fits or 0)
    if not least:
        raise InputError(f"train.batch_size=auto: not even 2 images fit into the memory of {device.device}")
    runs.tag(batch_size=str(least))
    return least
