"""The segmenter's task: its network, and what is logged of a training and of several folds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from ultrasound.errors import ParameterError
from ultrasound.images import splitting
from ultrasound.images.preparation import Pixels
from ultrasound.images.prepared import Prepared
from ultrasound.images.slices import slices
from ultrasound.inference.regions import Rule
from ultrasound.learning import segmenter
from ultrasound.learning.loop import EpochResult
from ultrasound.learning.segmenter import Outlines, Segmenter, UNet, predict
from ultrasound.learning.segmenting import Segmenting
from ultrasound.scoring import figures, outlines, resemblance, rules
from ultrasound.scoring.intervals import Interval
from ultrasound.sections import UNUSED, Params
from ultrasound.tracking import models, runs
from ultrasound.tracking.task import Search, Task, Trained

RESAMPLES = 2000
SHOWN = 4  # images in each row of the gallery
COMPARED = ("dice", "lesion_dice", "false_lesion_rate")  # by a search
LAYERS = "train.layer_decay"  # must be 1, which a recipe or the command line may say


class CrossValidation(NamedTuple):
    """A training for each of several folds.

    Attributes:
        folds: fold -> its training.
        values: fold -> metrics on its validation images, by the rule that the other folds have chosen.
        rows: positions in the prepared data of the images with a known outline, which were outlined out of fold.
        table: a row for each of them, of `outlines.per_image`.
        intervals: metric -> its value with the 95 % interval of a bootstrap by group.
        model: the one trained on all development images, or the mean of the folds' models; None if neither is wanted.
    """

    folds: dict[int, Trained]
    values: dict[int, dict[str, float]]
    rows: NDArray[np.int64]
    table: pd.DataFrame
    intervals: dict[str, Interval]
    model: Segmenter | None


def check(params: Params) -> None:
    """Check what `network` and the training cannot do.

    Raises:
        ParameterError: a learning rate for every layer, or a recipe of what means nothing here.
    """
    if params.train.layer_decay < 1:
        raise ParameterError(f"{LAYERS}: a U-Net's encoder tells no layers apart; set it to 1 in segment.recipe")
    if useless := [key for key in params.segment.recipe if key in UNUSED["segmentation"]]:
        raise ParameterError(f"segment.recipe: {useless[0]} means nothing where outlines are learnt")


def network(params: Params) -> UNet:
    """The untrained network.

    Raises:
        ParameterError: an unknown or unfit model, or weights that cannot be had.
    """
    check(params)
    return segmenter.create(params.model.name, params.model.weights, params.segment.width)


def model(members: Sequence[nn.Module], params: Params, prepared: Prepared) -> Segmenter:
    """The segmenter that networks are together."""
    return Segmenter(Outlines(members, flip=params.train.test_flip).eval(), prepared.preparation, prepared.data_digest)


def log(trained: Trained, prepared: Prepared, params: Params | None = None) -> dict[str, float]:
    """Log what a training gave: metrics of its chosen epoch under `best/`, figures, a row an image.

    Args:
        params: log the model, too, its rule chosen on the validation fold.
    """
    chosen = trained.chosen
    curves = [(result.train, result.validation) for result in trained.history]
    runs.log_figure(figures.learning_curves(curves, chosen.epoch), "learning_curves")
    if not len(trained.rows):
        return {}
    rows, truths, levels = _known(trained, prepared)
    founds = np.stack([rules.HALF.mask(level) for level in levels])
    table = outlines.table(truths, founds)
    values = outlines.means(table)
    more = {name: chosen.validation[name] for name in ("loss", "macro_f1") if name in chosen.validation}
    runs.log_metrics({"epoch": chosen.epoch, **more, **values}, "best")
    log_images(prepared.images[rows], prepared.samples.iloc[rows], truths, founds, table, "validation")
    if params:
        log_model(trained.model, rules.choose(rules.try_all(truths, levels)), prepared)
    return values


def pool(
    folds: dict[int, Trained], values: dict[int, dict[str, float]], prepared: Prepared, model: Segmenter | None,
    params: Params,
) -> CrossValidation:  # fmt: skip
    """Log what the trainings of several folds gave together: metrics out of fold, pictures, the model and its rule."""
    parts = [_known(trained, prepared) for trained in folds.values()]
    rows, truths, levels = (np.concatenate(each) for each in zip(*parts, strict=True))
    fold = np.concatenate([np.full(len(part[0]), number) for number, part in zip(folds, parts, strict=True)])
    order = np.argsort(rows)
    rows, truths, levels, fold = rows[order], truths[order], levels[order], fold[order]
    tried = rules.try_all(truths, levels)
    founds, of_folds = rules.masks_out_of_fold(tried, levels, fold)
    runs.log_report({str(number): dataclasses.asdict(rule) for number, rule in of_folds.items()}, "rules_of_folds")
    table = outlines.table(truths, founds).assign(fold=fold)
    values = {number: outlines.means(table[fold == number]) for number in folds}
    groups = prepared.samples["group"].to_numpy(dtype=np.int64)[rows]
    scores = outlines.scores(table, groups, RESAMPLES)
    log_scores(scores, "out_of_fold")
    runs.log_metrics({"dice": scores["dice"].value}, "best")  # to sort runs by
    histories = {f"fold {number}": [result.validation for result in each.history] for number, each in folds.items()}
    runs.log_figure(figures.fold_curves(histories), "fold_curves")
    log_images(prepared.images[rows], prepared.samples.iloc[rows], truths, founds, table, "out_of_fold")
    runs.log_masks(prepared.samples["image_id"].iloc[rows].tolist(), founds, "out_of_fold")
    if model:
        log_model(model, rules.choose(tried), prepared)
    return CrossValidation(folds, values, rows, table, scores, model)


def log_scores(scores: dict[str, Interval], prefix: str) -> None:
    """Log metrics with the ends of their intervals."""
    runs.log_metrics({name: score.value for name, score in scores.items()}, prefix)
    ends = {f"{name}_{end}": getattr(score, end) for name, score in scores.items() for end in ("low", "high")}
    runs.log_metrics({name: end for name, end in ends.items() if end == end}, prefix)


def log_slices(
    rows: NDArray[np.int64], table: pd.DataFrame, prepared: Prepared, catalog: pd.DataFrame, name: str,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:  # fmt: skip
    """Log the scores of parts of the images: by lesion size, class, calipers and the like; the table.

    Args:
        rows: positions in the prepared data.
        table: a row for each of them, of `outlines.per_image`.
        catalog: of all images, with their annotations.
    """
    described = catalog.set_index("image_id", drop=False).loc[prepared.samples["image_id"]]
    every = prepared.samples["group"].to_numpy(dtype=np.int64)
    parts = [part._replace(rows=part.rows[rows]) for part in slices(described, every)]
    found = outlines.by_slice(table, every[rows], [part for part in parts if part.rows.any()], resamples)
    runs.log_table(found, f"slices_{name}")
    return found


def log_model(model: Segmenter, rule: Rule, prepared: Prepared) -> None:
    """Give a segmenter its rule and what it knows, and log it with the active run."""
    runs.log_report(dataclasses.asdict(rule), "rule")
    rows = prepared.rows(splitting.DEVELOPMENT)
    groups = prepared.samples["group"].to_numpy(dtype=np.int64)[rows]
    familiarity = resemblance.fit(prepared.images[rows], groups)
    models.log_segmenter(dataclasses.replace(model, rule=rule, familiarity=familiarity))


def _known(trained: Trained, prepared: Prepared) -> tuple[NDArray[np.int64], NDArray[np.bool_], Pixels]:
    """Rows, true masks and levels of the validation images whose outline is known."""
    known = prepared.samples["outlined"].to_numpy(dtype=np.bool_)[trained.rows]
    rows = trained.rows[known]
    return rows, np.asarray(prepared.masks[rows]), trained.chosen.probabilities[known]


def log_images(
    images: Pixels, samples: pd.DataFrame, truths: NDArray[np.bool_], founds: NDArray[np.bool_], table: pd.DataFrame,
    name: str,
) -> tuple[pd.DataFrame, Figure]:  # fmt: skip
    """Log a row an image, and a gallery of the best, the middling and the worst; both, the rows with their ids.

    Args:
        images, truths, founds: (n, size, size).
        samples: the images' rows of the prepared table.
        table: of `outlines.table`.
    """
    samples = samples[["image_id", "label", "group"]].reset_index(drop=True)
    named = pd.concat([samples, table], axis=1)
    runs.log_table(named, f"outlines_{name}")
    chosen = outlines.gallery(table, SHOWN)
    pictures = {
        title: [
            (images[row], truths[row], founds[row], f"{samples['image_id'][row]}, Dice {dice:.2f}")
            for row, dice in zip(numbers, table["dice"].to_numpy()[numbers], strict=True)
        ]
        for title, numbers in chosen.items()
    }
    drawn = figures.outlines(pictures)
    runs.log_figure(drawn, f"outlines_{name}")
    return named, drawn


def of_epoch(metric: str, targets: NDArray[np.int64], result: EpochResult) -> float:
    """A metric of the validation images of a fold, of everything more probable than not."""
    return result.validation[metric]


def of_trial(metric: str, parts: Sequence[Trained], prepared: Prepared) -> float:
    """A metric out of fold, of everything more probable than not, which needs no other fold; logs a row an image."""
    known = [_known(trained, prepared) for trained in parts]
    rows, truths, levels = (np.concatenate(each) for each in zip(*known, strict=True))
    table = outlines.table(truths, np.stack([rules.HALF.mask(level) for level in levels]))
    values = outlines.means(table)
    runs.log_report(dataclasses.asdict(rules.HALF), "rule")
    runs.log_metrics(values, "out_of_fold")
    samples = prepared.samples[["image_id", "label", "group"]].iloc[rows].reset_index(drop=True)
    runs.log_table(pd.concat([samples, table], axis=1), "outlines_out_of_fold")
    return values[metric]


def gain(
    first: Sequence[CrossValidation], second: Sequence[CrossValidation], prepared: Prepared
) -> dict[str, Interval]:
    """How much higher the second score on the same images, means over the repetitions."""
    groups = prepared.samples["group"].to_numpy(dtype=np.int64)[first[0].rows]
    before, after = ([crossed.table for crossed in each] for each in (first, second))
    return {name: outlines.difference(name, before, after, groups, RESAMPLES) for name in COMPARED}


SEARCH = Search(
    {"dice": False, "lesion_dice": False}, COMPARED, (*UNUSED["segmentation"], LAYERS), check, of_epoch, of_trial, gain
)
SEGMENTATION = Task(
    Segmenting, outlines.epoch_score, network, lambda params: (True, True), model, predict, log, pool, SEARCH
)
