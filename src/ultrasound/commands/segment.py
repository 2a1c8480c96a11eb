"""Train a U-Net that outlines lesions, on the development folds, and log everything: curves, scores, pictures, model.

Run as `mlflow run . -e segment --env-manager local -P train.folds=all`, or alone: `python -m ultrasound segment`. The
encoder is the backbone of section `model`, the training that of `train`, but for what `segment.recipe` says. With
several folds, each image is outlined out of fold, by a threshold that the other folds have chosen, and the model is
then trained on all development images. The locked test set is not touched, unless segment.offer is set: then the model
is scored on it, registered and judged, as `mlflow run . -e register --env-manager local -P register.run=segmenter` does
later.
"""

import sys
from typing import Any

from ultrasound.commands import CATALOG, CHECKPOINTS, PREPARED, REPORT
from ultrasound.commands.register import offer_segmenter
from ultrasound.errors import ParameterError
from ultrasound.images import catalog, prepared
from ultrasound.learning.checkpoints import Checkpoints
from ultrasound.learning.processes import is_main
from ultrasound.params import flatten
from ultrasound.scoring import outlines
from ultrasound.sections import Params
from ultrasound.tracking import folds, provenance, registry, runs, segmentation, training
from ultrasound.tracking.resume import Resume
from ultrasound.tracking.segmentation import SEGMENTATION
from ultrasound.tracking.task import meaningful

SECTIONS = ("model", "augment", "train", "segment")
TASK = "segmentation"
OTHER = ("name", "recipe", "offer", "min_dice", "max_false", "margin")  # no part of a training; a recipe is in `train`
SHOWN = ("lesion_dice", "dice", "false_lesion_rate")


def with_recipe(values: Any) -> bool:
    """Outlines want another training than classes."""
    return True


def run(params: Params) -> None:
    """Train under one run, with a child for each of several folds; print the metrics."""
    provenance.require_current(params)
    data = prepared.read(PREPARED)
    report = provenance.require_report(REPORT, data)
    tags = {**provenance.tags(data), "seed": str(params.train.seed)}
    segmentation.check(params)
    if params.segment.offer:
        registry.require_two_names(params)
    values = meaningful(SEGMENTATION, flatten(params, ("data", "split", "preprocess", *SECTIONS)))
    if params.segment.offer and len(params.folds) > 1 and not (params.train.refit or params.train.ensemble):
        raise ParameterError("segment.offer: with several folds and neither train.refit nor train.ensemble there are "
                             "as many models; set one of the two")  # fmt: skip
    deciding = {key: value for key, value in values.items() if key.removeprefix("segment.") not in OTHER}
    resume = Resume(provenance.resume_key("segment", deciding, tags), CHECKPOINTS) if params.train.resume else None
    with runs.run("segment", f"segment-{params.model.name}", values, tags, resume) as run_id:
        runs.log_file(report)
        training.log_examples(params, data)
        if len(params.folds) > 1:
            crossed = folds.cross_validate(params, data, CHECKPOINTS / run_id, task=SEGMENTATION)
            segmentation.log_slices(crossed.rows, crossed.table, data, catalog.read(CATALOG), "out_of_fold")
            lines = _of_folds(crossed)
        else:
            checkpoints = Checkpoints(CHECKPOINTS / run_id / "fold")
            fold = params.folds[0]
            trained = training.train(params, data, params.model.name, fold, checkpoints=checkpoints, task=SEGMENTATION)
            metrics = segmentation.log(trained, data, params)
            lines = [f"validation fold {fold}, everything more probable than not:",
                     *(f"  {name:<20} {value:.3f}" for name, value in metrics.items())]  # fmt: skip
    if not is_main():
        return
    print("\n".join([*lines, f"run {run_id}"]))
    if params.segment.offer:
        try:
            offer_segmenter(run_id, params, data)
        except BaseException:
            print(f"the model is kept in its run, which `register` with register.run={run_id} offers again",
                  file=sys.stderr)  # fmt: skip
            raise


def _of_folds(crossed: segmentation.CrossValidation) -> list[str]:
    lines = [f"{'fold':>5} {'images':>7} {'epoch':>6}" + "".join(f" {name:>18}" for name in SHOWN)]
    for fold, values in crossed.values.items():
        trained = crossed.folds[fold]
        lines.append(f"{fold:>5} {len(trained.rows):>7} {trained.chosen.epoch:>6}"
                     + "".join(f" {values[name]:>18.3f}" for name in SHOWN))  # fmt: skip
    return [*lines, f"out of fold, {len(crossed.rows)} images (95 % intervals of a bootstrap by group), the threshold "
            "of each fold chosen on the others:", outlines.as_text(crossed.intervals)]  # fmt: skip
