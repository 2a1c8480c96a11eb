"""Fine-tune a model on the development folds and log everything: curves, confusion matrix, predictions, model.

Run as `mlflow run . -e train --env-manager local -P train.epochs=5`, or alone: `python -m ultrasound train`. One
fold validates, the others train. With several folds, or all, each image of them is predicted out of fold, and the model
is then trained on all development images (train.refit) or is the mean of the folds' models (train.ensemble). The locked
test set is not touched (see `evaluate`). A run that was killed is continued by the same command.
"""

from ultrasound.commands import CHECKPOINTS, PREPARED, REPORT
from ultrasound.images import prepared
from ultrasound.learning.checkpoints import Checkpoints
from ultrasound.learning.processes import is_main
from ultrasound.params import flatten
from ultrasound.sections import Params
from ultrasound.tracking import classification, folds, provenance, runs, training
from ultrasound.tracking.classification import CLASSIFICATION, CrossValidation
from ultrasound.tracking.resume import Resume
from ultrasound.tracking.task import Trained, meaningful

SECTIONS = ("model", "augment", "train", "calibrate")
TASK = "classification"
SHOWN = ("macro_f1", "accuracy", "balanced_accuracy", "macro_auc")


def run(params: Params) -> None:
    """Train under one run, with a child for each of several folds; print the epochs, or the folds, and the metrics."""
    provenance.require_current(params)
    data = prepared.read(PREPARED)
    report = provenance.require_report(REPORT, data)
    tags = {**provenance.tags(data), "seed": str(params.train.seed)}
    values = meaningful(CLASSIFICATION, flatten(params, ("data", "split", "preprocess", *SECTIONS)))
    resume = Resume(provenance.resume_key("train", values, tags), CHECKPOINTS) if params.train.resume else None
    with runs.run("train", f"train-{params.model.name}", values, tags, resume) as run_id:
        runs.log_file(report)
        training.log_examples(params, data)
        if len(params.folds) > 1:
            crossed = folds.cross_validate(params, data, CHECKPOINTS / run_id)
        else:
            checkpoints = Checkpoints(CHECKPOINTS / run_id / "fold")
            trained = training.train(params, data, params.model.name, params.folds[0], checkpoints=checkpoints)
            metrics = classification.log(trained, data, params)
    if is_main():
        _print_folds(crossed) if len(params.folds) > 1 else _print_epochs(trained, metrics, params.folds[0])
        print(f"run {run_id}")


def _print_epochs(trained: Trained, metrics: dict[str, float], fold: int) -> None:
    print(f"{'epoch':>5} {'train loss':>10} {'val loss':>9} {'val accuracy':>12} {'val macro-F1':>12}")
    for result in trained.history:
        print(f"{result.epoch:>5} {result.train['loss']:>10.3f} {result.validation['loss']:>9.3f} "
              f"{result.validation['accuracy']:>12.3f} {result.validation['macro_f1']:>12.3f}"
              f"{'  <- chosen' if result.epoch == trained.chosen.epoch else ''}")  # fmt: skip
    print(f"validation fold {fold}: macro-F1 {metrics['macro_f1']:.3f}, "
          f"accuracy {metrics['accuracy']:.3f}, balanced accuracy {metrics['balanced_accuracy']:.3f}, "
          f"AUC {metrics['macro_auc']:.3f}")  # fmt: skip


def _print_folds(crossed: CrossValidation) -> None:
    print(f"{'fold':>5} {'images':>7} {'epoch':>6}" + "".join(f" {name:>18}" for name in SHOWN))
    for fold, values in crossed.values.items():
        trained = crossed.folds[fold]
        print(f"{fold:>5} {len(trained.rows):>7} {trained.chosen.epoch:>6}"
              + "".join(f" {values[name]:>18.3f}" for name in SHOWN))  # fmt: skip
    spread = crossed.spread
    print(f"{'mean':>20}" + "".join(f" {spread[name][0]:>18.3f}" for name in SHOWN))
    print(f"{'sd':>20}" + "".join(f" {spread[name][1]:>18.3f}" for name in SHOWN))
    print(f"out of fold, {len(crossed.rows)} images (95 % intervals of a bootstrap by group of near-duplicates):")
    for name in SHOWN:
        value, low, high = crossed.intervals[name]
        print(f"  {name:<18} {value:.3f} ({low:.3f} to {high:.3f})")
