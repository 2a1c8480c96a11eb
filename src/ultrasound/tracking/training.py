"""One tracked training on one fold: what `train` does once and `tune` for every trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ultrasound.errors import InputError
from ultrasound.images import splitting
from ultrasound.images.loading import Batches
from ultrasound.images.prepared import Prepared
from ultrasound.learning import backbone, fitting
from ultrasound.learning.classifier import Classifier, predict
from ultrasound.learning.fitting import EpochResult
from ultrasound.params import Params
from ultrasound.scoring import figures, metrics
from ultrasound.tracking import models, runs


class Trained(NamedTuple):
    """A finished training.

    Attributes:
        model: with the weights of the best epoch.
        best: that epoch's result.
        history: every epoch's result.
        rows: positions of the validation images in the prepared data.
        targets: their class numbers.
    """

    model: Classifier
    best: EpochResult
    history: list[EpochResult]
    rows: NDArray[np.int64]
    targets: NDArray[np.int64]


def train(
    params: Params, prepared: Prepared, title: str, on_epoch: Callable[[EpochResult], object] = lambda result: None
) -> Trained:
    """Train on all development folds but `train.fold`, validate on that one, log every epoch with the active run.

    Args:
        title: of the progress bar.
        on_epoch: called after each epoch is logged; may raise to stop.

    Raises:
        InputError: the data lacks a class or the fold, or the loss is no longer finite.
        ParameterError: a model, weights or device that cannot be had.
    """
    labels, targets = params.data.classes, class_numbers(params, prepared)
    device = fitting.accelerator(params.train)
    settings = params.model
    architecture: dict[str, str | int | float] = {
        "name": settings.name, "classes": len(labels), "head_width": settings.head_width, "dropout": settings.dropout,
    }  # fmt: skip
    network = backbone.create(settings.name, settings.weights, len(labels), settings.head_width, settings.dropout)
    backbone.require_size(network, prepared.preparation.size)
    network = network.to(device.device)
    rows = {
        "training": prepared.rows(splitting.DEVELOPMENT, params.train.fold, without=True),
        "validation": prepared.rows(splitting.DEVELOPMENT, params.train.fold),
    }
    for context, chosen in rows.items():
        runs.log_dataset(prepared, chosen, params.data.source, context)
    training, validation = (
        Batches(prepared.images[chosen], targets[chosen], params.train.batch_size, device.device)
        for chosen in rows.values()
    )
    history: list[EpochResult] = []
    with tqdm(total=params.train.epochs * len(training), desc=title, unit="step", disable=None) as bar:
        for result in fitting.fit(
            network, training, validation, params.train, params.augment, metrics.epoch_score, device, on_step=bar.update
        ):
            history.append(result)
            runs.log_epoch(result)
            bar.set_postfix(epoch=result.epoch, loss=f"{result.validation['loss']:.3f}",
                            macro_f1=f"{result.validation['macro_f1']:.3f}")  # fmt: skip
            on_epoch(result)
    best = max((result for result in history if result.is_best), key=lambda result: result.epoch)
    if device.mixed_precision != "no":  # what is reported is what the saved model says, in full precision
        best = best._replace(probabilities=predict(network, validation))
    model = Classifier(network, labels, prepared.preparation, architecture, prepared.data_digest)
    return Trained(model, best, history, rows["validation"], targets[rows["validation"]])


def class_numbers(params: Params, prepared: Prepared) -> NDArray[np.int64]:
    """Class number of every prepared image: (n,), in the order of `data.classes`.

    Raises:
        InputError: the prepared images were made otherwise or have other classes than the parameters say.
    """
    labels = params.data.classes
    wanted, made = params.preprocess, prepared.preparation
    if (wanted.size, wanted.crop) != (made.size, made.crop):
        raise InputError(
            f"params.yaml says preprocess.size={wanted.size} and preprocess.crop={wanted.crop}, but build/prepared was "
            f"made with {made.size} and {made.crop}: run `dvc repro`"
        )
    if set(labels) != (found := set(prepared.samples["label"])):
        raise InputError(f"data.classes says {', '.join(labels)}, but build/prepared holds {', '.join(sorted(found))}")
    return prepared.samples["label"].map(labels.index).to_numpy(dtype=np.int64)


def log(trained: Trained, prepared: Prepared, *, with_model: bool = True) -> dict[str, float]:
    """Log what a finished training gave: metrics of its best epoch under `best/`, figures, predictions, the model."""
    labels, best = trained.model.labels, trained.best
    values = metrics.score(trained.targets, best.probabilities, labels)
    runs.log_metrics({"epoch": best.epoch, "loss": best.validation["loss"], **values}, "best")
    curves = [(result.train, result.validation) for result in trained.history]
    runs.log_figure(figures.learning_curves(curves, best.epoch), "learning_curves")
    counts = metrics.confusion(trained.targets, best.probabilities)
    title = f"validation fold, {len(trained.rows)} images, epoch {best.epoch}"
    runs.log_figure(figures.confusion_matrix(counts, labels, title), "confusion_validation")
    samples = prepared.samples.iloc[trained.rows]
    runs.log_table(models.predictions(samples, labels, best.probabilities), "predictions_validation")
    if with_model:
        models.log(trained.model)
    return values
