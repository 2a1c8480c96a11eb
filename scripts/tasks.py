"""`python scripts/tasks.py SINGLE [--both RUN]`: do outlines and classes help each other? Written into docs/results.md.

SINGLE is the id of a finished run of `segment` on all folds, `--both` that of one with train.classification_weight
above 0. On the same folds, with the backbone of SINGLE and the recipe of params.yaml, two classifiers are trained: one
sees whole images, the other only the region where SINGLE has found a lesion out of fold, with what lies around it, or
the whole image where it found none. They are runs in the experiment `tasks`; finished ones are not trained again, one
that was stopped goes on. The locked test set takes no part.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pandas as pd
from documents import RESULTS, artifact, code, finished, renewed, signed
from mlflow.entities import Run
from numpy.typing import NDArray
from tqdm import tqdm

from ultrasound import params
from ultrasound.commands import CATALOG, CHECKPOINTS, PREPARED
from ultrasound.errors import InputError
from ultrasound.images import catalog, prepared
from ultrasound.images.preparation import open_image
from ultrasound.images.prepared import Prepared
from ultrasound.scoring import comparisons, intervals, metrics, outlines
from ultrasound.scoring.intervals import Interval
from ultrasound.sections import Params
from ultrasound.tracking import folds, provenance, runs
from ultrasound.tracking.resume import TAG, Resume

EXPERIMENT, VERB = "tasks", "tasks"  # no run of `train`: `register` must not take a classifier of regions for a model
WEIGHT = "train.classification_weight"
AROUND = 0.3  # of the region's longer side, seen on each side of it: margin and shadow tell, too
LEAST = 0.25  # of the image's shorter side, the least side of what is seen
SHOWN = ("macro_f1", "macro_auc")
RESAMPLES = 2000


def main() -> None:
    """Train what is missing, then write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("single", help="id of a run of segment on all folds")
    parser.add_argument("--both", help="id of a run of segment that has learnt the class beside")
    arguments = parser.parse_args()
    try:
        renewed(RESULTS, "tasks", "")  # that there is a place for what will take an hour
        data = prepared.read(PREPARED)
        single = segmented(arguments.single, data)
        both = segmented(arguments.both, data) if arguments.both else None
        require_fit(single, both)
        chosen = params.load(
            {key: single.data.params[key] for key in ("model.name", "model.weights")}
            | {"train.folds": ast.literal_eval(single.data.params["train.folds"].replace("all", "'all'")),
               "train.refit": False, "train.ensemble": False}
        )  # fmt: skip
        seen = {"whole images": data, "found regions": cropped(data, single)}
        found = {name: classified(name, chosen, images) for name, images in seen.items()}
        lines = [*outlined(single, both), "", *classes(found, both), "", protocol(single, both, found, chosen)]
        RESULTS.write_text(renewed(RESULTS, "tasks", "\n".join(lines)))
        print(f"{RESULTS}: section tasks renewed")
    except InputError as error:
        sys.exit(f"error: {error}")


def segmented(run_id: str, data: Prepared) -> Run:
    """A finished run of `segment` on today's data and split.

    Raises:
        InputError: it is none.
    """
    run, tags = finished(run_id, "segment"), provenance.tags(data)
    if any(run.data.tags[key] != tags[key] for key in provenance.DIGESTS):
        raise InputError(f"run {run_id} is of other data or another split than today's")
    for key, value in dataclasses.asdict(data.preparation).items():  # regions are cut by it
        if (was := run.data.params[f"preprocess.{key}"]) != str(value):
            raise InputError(
                f"run {run_id} had preprocess.{key}={was}, today's data {value}: `dvc repro` with the former"
            )
    return run


def require_fit(single: Run, both: Run | None) -> None:
    """Check that nothing but the second head tells two runs apart.

    Raises:
        InputError: something does.
    """
    if float(single.data.params[WEIGHT]):
        raise InputError(f"run {single.info.run_id} has learnt the class, too: give one with {WEIGHT}=0")
    if both is None:
        return
    if not float(both.data.params[WEIGHT]):
        raise InputError(f"run {both.info.run_id} has not learnt the class: give one with {WEIGHT} above 0")
    for key, value in single.data.params.items():
        is_of_training = key.startswith(("model.", "augment.", "train.")) or key == "segment.width"
        if is_of_training and key not in (WEIGHT, "train.refit", "train.ensemble") and both.data.params[key] != value:
            raise InputError(f"the two runs differ in {key}: {value} and {both.data.params[key]}")


def cropped(data: Prepared, run: Run) -> Prepared:
    """The same data with every image cut to what a segmenter has found in it out of fold."""
    with np.load(artifact(run, "masks/out_of_fold.npz")) as saved:
        masks = dict(zip(saved["image_id"].tolist(), saved["masks"], strict=True))
    files = catalog.read(CATALOG).set_index("image_id")["image"]
    preparation, images = data.preparation, np.array(data.images)
    for row, name in enumerate(tqdm(data.samples["image_id"], "cut", leave=False, disable=None)):
        if name in masks and masks[name].any():
            image = open_image(Path(files[name]), files[name])
            where = preparation.back(masks[name].astype(np.uint8) * 255, preparation.placed(image)[1]) > 127
            if where.any():
                images[row] = preparation.grey(image.crop(box_around(where)))
    return data._replace(images=images)


def box_around(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The square around a mask (height, width), as far as the image goes: left, top, right, bottom."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    side = max(max(width, height) * (1 + 2 * AROUND), LEAST * min(mask.shape))
    ends = []
    for begin, length, limit in ((left, width, mask.shape[1]), (top, height, mask.shape[0])):
        low = max(0, round(begin + length / 2 - side / 2))
        ends.append((low, max(low + 1, min(limit, round(begin + length / 2 + side / 2)))))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def classified(name: str, chosen: Params, data: Prepared) -> Run:
    """The run of a classifier of such images, trained now if there is none yet."""
    mlflow.set_experiment(EXPERIMENT)
    values = params.flatten(chosen, ("data", "split", "preprocess", "model", "augment", "train"))
    tags = {**provenance.tags(data), "seed": str(chosen.train.seed), "sees": name}
    seen = {"sees": name, "pixels": hashlib.sha256(data.images.tobytes()).hexdigest()}  # however regions were cut
    resume = Resume(provenance.resume_key(VERB, values | seen, tags), CHECKPOINTS)
    known = mlflow.search_runs(
        experiment_names=[EXPERIMENT], output_format="list",
        filter_string=f"tags.{TAG} = '{resume.key}' AND attributes.status = 'FINISHED'",
    )  # fmt: skip
    if known:
        return known[0]
    with runs.run(VERB, name.replace(" ", "-"), values, tags, resume) as run_id:
        folds.cross_validate(chosen, data, CHECKPOINTS / run_id, with_models=False)
    return mlflow.get_run(run_id)


def outlined(single: Run, both: Run | None) -> list[str]:
    """A table of outlines, of both tasks and of one."""
    lines = ["| outlines, out of fold | Dice of lesions | Dice, all images | false lesions |", "|---|---:|---:|---:|"]
    names = ("lesion_dice", "dice", "false_lesion_rate")
    for title, run in {"outlines alone": single, "outlines and classes": both}.items():
        if run is not None:
            scores = [Interval(*(run.data.metrics.get(f"out_of_fold/{name}{end}", np.nan)
                                 for end in ("", "_low", "_high"))) for name in names]  # fmt: skip
            lines.append(f"| {title} | " + " | ".join(map(str, scores)) + " |")
    if both is not None:
        first, second = (pd.read_csv(artifact(run, "tables/outlines_out_of_fold.csv")) for run in (single, both))
        if first["image_id"].tolist() != second["image_id"].tolist():
            raise InputError("the two runs of segment have outlined different images: take the same folds")
        less = [outlines.difference(name, [first], [second], first["group"].to_numpy(), RESAMPLES) for name in names]
        lines.append("| difference | " + " | ".join(map(signed, less)) + " |")
    return lines


def classes(found: dict[str, Run], both: Run | None) -> list[str]:
    """A table of classes, of classifiers, the two together, and the second head of both tasks."""
    tables = {name: pd.read_csv(artifact(run, "tables/predictions_out_of_fold.csv")) for name, run in found.items()}
    first, *_ = tables.values()
    columns = [column for column in map(str, first) if column.startswith("p_")]
    labels = [column.removeprefix("p_") for column in columns]
    targets, groups = first["label"].map(labels.index).to_numpy(), first["group"].to_numpy()
    answers = {name: table[columns].to_numpy() for name, table in tables.items()}
    answers["mean of the two"] = np.mean(list(answers.values()), axis=0)
    lines = ["| classes, out of fold | macro-F1 | AUC | macro-F1 less that of whole images | macro-F1 of the folds |",
             "|---|---:|---:|---:|---:|"]  # fmt: skip
    folds_of = [first["fold"].to_numpy() == number for number in sorted(first["fold"].unique())]
    for name, probabilities in answers.items():
        drawn = intervals.bootstrap(
            {metric: intervals.mean_of(metric, targets, [probabilities]) for metric in SHOWN}, groups, RESAMPLES, 0
        )
        less = ""
        if name != "whole images":
            before = [answers["whole images"]]
            less = signed(comparisons.difference("macro_f1", targets, before, [probabilities], groups, RESAMPLES))
        each = [metrics.METRICS["macro_f1"].of(targets[here], probabilities[here]) for here in folds_of]
        scores = [str(intervals.interval(drawn[metric])) for metric in SHOWN]
        lines.append(f"| {name} | {' | '.join(scores)} | {less} | {_spread(each)} |")
    if both is not None:
        children = mlflow.search_runs(
            experiment_ids=[both.info.experiment_id], output_format="list",
            filter_string=f"tags.`mlflow.parentRunId` = '{both.info.run_id}' AND tags.fold LIKE '%'",
        )  # fmt: skip
        head = [child.data.metrics["best/macro_f1"] for child in children]
        lines.append(f"| second head of both tasks | | | | {_spread(head)} |")
    return lines


def protocol(single: Run, both: Run | None, found: dict[str, Run], chosen: Params) -> str:
    """What names data, code and protocol."""
    tags, size = single.data.tags, single.data.params["preprocess.size"]
    weight = f" (weight of the class: {both.data.params['train.classification_weight']})" if both else ""
    codes = ", ".join(f"`{code(run)}`" for run in (single, *([both] if both else []), *found.values()))
    return (
        f"U-Net and classifiers over `{single.data.params['model.name']}`, {size} x {size} pixels; "
        f"{single.data.params['train.epochs']} epochs of outlines{weight}, {chosen.train.epochs} of classes; one seed "
        f"each. Data `{tags['data_digest']}`, split `{tags['split_digest']}`, code {codes}. In brackets, 95 % "
        f"intervals of a bootstrap by group, {RESAMPLES} resamples; differences are paired. Of the folds: mean ± "
        "standard deviation."
    )


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


if __name__ == "__main__":
    main()
