"""A classifier is asked about images that it has not learnt from; all that follows is calculated, nothing is logged."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ultrasound.errors import InputError
from ultrasound.images.catalog import SEPARATOR
from ultrasound.images.preparation import Pixels, Preparation, open_image
from ultrasound.images.prepared import Prepared
from ultrasound.images.slices import slices
from ultrasound.inference.calibration import Calibration
from ultrasound.learning import heat
from ultrasound.learning.classifier import Classifier
from ultrasound.scoring import evaluation as scoring
from ultrasound.scoring import metrics
from ultrasound.scoring.evaluation import Answers
from ultrasound.scoring.intervals import Interval
from ultrasound.sections import Evaluate
from ultrasound.tracking import explaining
from ultrasound.tracking.explaining import Explained


class Tested(NamedTuple):
    """What a classifier says to n images, before anything is logged.

    Attributes:
        samples: the images' rows of the prepared table.
        images, masks: (n, size, size) as the model gets them.
        raw: (n, classes) probabilities before calibration.
        calibration: of the classifier.
        answers: what they come to.
        confusion: (classes, classes) counts, true classes in rows.
        scores: name -> score with its interval, from so many `resamples`.
        by_slice: a row a slice.
        explained: None where that was not wanted, or the backbone has no feature maps.
    """

    samples: pd.DataFrame
    images: Pixels
    masks: NDArray[np.bool_]
    raw: NDArray[np.float64]
    calibration: Calibration
    answers: Answers
    confusion: NDArray[np.int64]
    scores: dict[str, Interval]
    resamples: int
    by_slice: pd.DataFrame
    explained: Explained | None


def test(
    model: Classifier, prepared: Prepared, rows: NDArray[np.int64], catalog: pd.DataFrame, settings: Evaluate
) -> Tested:
    """Score a model on some of the prepared images.

    Args:
        rows: positions of the images, none of which the model has learnt from.

    Raises:
        InputError: there are other classes than the model knows.
    """
    samples = prepared.samples.iloc[rows]
    if unknown := set(samples["label"]) - set(model.labels):
        raise InputError(f"the model knows {', '.join(model.labels)}, but the images are of {', '.join(unknown)}, too")
    described = catalog.set_index("image_id", drop=False).loc[prepared.samples["image_id"]]
    images, masks = pixels(model.preparation, prepared, rows, described.iloc[rows])
    groups, explained = samples["group"].to_numpy(dtype=np.int64), None
    if settings.explain and heat.has_maps(model.network, images.shape[1]):
        raw, explained = explaining.explain(model, images, masks, groups, settings.resamples)
    else:
        raw = model.raw(images)
    answers = _answers(model, raw, samples)
    agreement = explained.agreement if explained else None
    scores = scoring.scores(scoring.statistics(answers, agreement), groups, settings.resamples)
    parts = [part._replace(rows=part.rows[rows]) for part in slices(described, prepared.samples["group"].to_numpy())]
    by_slice = scoring.by_slice(answers, [part for part in parts if part.rows.any()], settings.resamples)
    confusion = metrics.confusion(answers.targets, answers.probabilities)
    return Tested(samples, images, masks, raw, model.calibrated, answers, confusion, scores, settings.resamples,
                  by_slice, explained)  # fmt: skip


def pixels(
    preparation: Preparation, prepared: Prepared, rows: NDArray[np.int64], described: pd.DataFrame
) -> tuple[Pixels, NDArray[np.bool_]]:
    """Images and masks as a model wants them, which may differ from the prepared ones.

    Args:
        rows: positions in the prepared data.
        described: the catalogue's rows of these images.
    """
    if preparation == prepared.preparation:
        return np.ascontiguousarray(prepared.images[rows]), np.ascontiguousarray(prepared.masks[rows])
    images, masks = [], []
    for file, outlines in zip(described["image"], described["masks"], strict=True):
        image = open_image(Path(file), file)
        images.append(preparation.grey(image))
        masks.append(preparation.mask(
            [open_image(Path(outline), outline) for outline in outlines.split(SEPARATOR) if outline], image
        ))  # fmt: skip
    return np.stack(images), np.stack(masks)


def _answers(model: Classifier, raw: NDArray[np.float64], samples: pd.DataFrame) -> Answers:
    calibrated = model.calibrated
    probabilities = calibrated.probabilities(raw)
    positive = model.labels.index(calibrated.positive)
    return Answers(
        targets=samples["label"].map(model.labels.index).to_numpy(dtype=np.int64),
        probabilities=probabilities,
        labels=model.labels,
        positive=positive,
        called=probabilities[:, positive] >= calibrated.threshold,
        sets=calibrated.sets(probabilities),
        groups=samples["group"].to_numpy(dtype=np.int64),
    )
