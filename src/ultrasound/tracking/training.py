"""One tracked training: what `train` does once or for every fold, and `tune` for every trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

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
from ultrasound.learning.backbone import Network
from ultrasound.learning.checkpoints import Checkpoints
from ultrasound.learning.classifier import Classifier, Ensemble, predict
from ultrasound.learning.loop import EpochResult
from ultrasound.scoring import figures, metrics
from ultrasound.sections import Calibrate, Params
from ultrasound.tracking import calibrating, models, runs

EVALUATION_BATCH = 64
EXAMPLES, VIEWS = 4, 6  # augmented examples: images, and views of each


class Trained(NamedTuple):
    """A finished training.

    Attributes:
        model: with the weights of the chosen epoch.
        chosen: that epoch's result.
        history: every epoch's result.
        rows: positions of the validation images in the prepared data.
        targets: their class numbers.
    """

    model: Classifier
    chosen: EpochResult
    history: list[EpochResult]
    rows: NDArray[np.int64]
    targets: NDArray[np.int64]


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
) -> Trained:
    """Train on all development folds but `fold`, validate on that one, log every epoch with the active run.

    Args:
        title: of the progress bar.
        fold: None to train on all development images and validate on none.
        checkpoints: where to continue from and to save to.
        until: the epoch to stop after.
        prefix: of the metrics' names, where one run holds several trainings.
        on_epoch: called after each epoch is logged; may raise to stop.

    Raises:
        InputError: the data lacks a class or the fold, the loss is no longer finite, or a checkpoint can't be written.
        ParameterError: a model, weights or device that cannot be had.
    """
    settings, targets = params.train, class_numbers(params, prepared)
    device = fitting.accelerator(settings)
    network = _network(params, prepared, device.device)
    batch_size = _fitting_batch(network, prepared, device) if settings.batch_size == "auto" else settings.batch_size
    rows = prepared.rows(splitting.DEVELOPMENT, fold, without=fold is not None)
    held_out = prepared.rows(splitting.DEVELOPMENT, fold) if fold is not None else np.empty(0, np.int64)
    for context, chosen in (("training", rows), ("validation", held_out)):
        if len(chosen):
            runs.log_dataset(prepared, chosen, params.data.source, context)
    masks, outlined = _outlines(prepared, rows) if settings.segmentation_weight else (None, None)
    training = Batches(prepared.images, targets, batch_size, device.device, rows, masks=masks, outlined=outlined)
    validation = Batches(prepared.images, targets, EVALUATION_BATCH, device.device, held_out) if len(held_out) else None
    history: list[EpochResult] = []
    known = runs.logged_epochs(prefix)
    steps = (until or settings.epochs) * len(training)
    with tqdm(total=steps, desc=title, unit="step", disable=None if processes.is_main() else True) as bar:
        for result in fitting.fit(
            network, training, validation, settings, params.augment, metrics.epoch_score, device, checkpoints,
            until=until, on_step=bar.update,
        ):  # fmt: skip
            history.append(result)
            bar.update(result.epoch * len(training) - bar.n)  # epochs of a checkpoint took no steps
            if result.epoch not in known:
                runs.log_epoch(result, prefix)
            shown = {"epoch": result.epoch, "training loss": result.train["loss"], **result.validation}
            bar.set_postfix(shown)
            on_epoch(result)
    if validation is None or settings.choose == "last":
        best = history[-1]
    else:
        best = max((result for result in history if result.is_best), key=lambda result: result.epoch)
    answering = Ensemble([network], flip=settings.test_flip).eval()
    if validation and device.mixed_precision != "no":  # what is reported is what the saved model says
        best = best._replace(probabilities=predict(answering, validation))
    model = Classifier(answering, params.data.classes, prepared.preparation, prepared.data_digest)
    return Trained(model, best, history, held_out, targets[held_out])


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


def log(trained: Trained, prepared: Prepared, settings: Calibrate | None = None) -> dict[str, float]:
    """Log what a training gave: metrics of its chosen epoch under `best/`, figures, predictions.

    Args:
        settings: log the model, too, calibrated on the validation fold.
    """
    labels, chosen = trained.model.labels, trained.chosen
    curves = [(result.train, result.validation) for result in trained.history]
    runs.log_figure(figures.learning_curves(curves, chosen.epoch), "learning_curves")
    values: dict[str, float] = {}
    if len(trained.rows):
        values = metrics.score(trained.targets, chosen.probabilities, labels)
        runs.log_metrics({"epoch": chosen.epoch, "loss": chosen.validation["loss"], **values}, "best")
        counts = metrics.confusion(trained.targets, chosen.probabilities)
        title = f"validation fold, {len(trained.rows)} images, epoch {chosen.epoch}"
        runs.log_figure(figures.confusion_matrix(counts, labels, title), "confusion_validation")
        samples = prepared.samples.iloc[trained.rows]
        runs.log_table(models.predictions(samples, labels, chosen.probabilities), "predictions_validation")
        if settings:
            models.log(
                calibrating.calibrate(
                    trained.model, trained.targets, chosen.probabilities, settings, "of the validation fold"
                )
            )
    return values


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


def _outlines(prepared: Prepared, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    outlined = prepared.samples["outlined"].to_numpy(dtype=np.bool_)
    if not prepared.masks[rows].any():
        raise InputError("train.segmentation_weight: no training image has a lesion mask; set it to 0, or add masks")
    return prepared.masks, outlined


def _fitting_batch(network: Network, prepared: Prepared, device: Accelerator) -> int:
    # A run that is continued keeps its batch, however much memory is free today.
    known = processes.from_main(device, runs.tag_of_active("batch_size"))
    fits = int(known) if known else memory.batch_that_fits(network, prepared.preparation.size, device)
    least = processes.least(device, fits or 0)
    if not least:
        raise InputError(f"train.batch_size=auto: not even 2 images fit into the memory of {device.device}")
    runs.tag(batch_size=str(least))
    return least


def _network(params: Params, prepared: Prepared, device: torch.device) -> Network:
    settings, classes = params.model, len(params.data.classes)
    network = backbone.create(
        settings.name, settings.weights, classes, settings.head_width, settings.dropout, settings.drop_path
    )
    backbone.require_size(network, prepared.preparation.size)
    return network.to(device)
