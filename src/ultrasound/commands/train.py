"""Fine-tune a model on the development folds and log everything: curves, confusion matrix, predictions, model.

Run as `mlflow run . -e train --env-manager local -P train.epochs=5`, or alone: `python -m ultrasound train`.
Fold `train.fold` validates; the locked test set is not touched (see `evaluate`).
"""

from ultrasound.commands import PREPARED, REPORT
from ultrasound.images import prepared
from ultrasound.params import Params, flatten
from ultrasound.tracking import provenance, runs, training

SECTIONS = ("model", "augment", "train")


def run(params: Params) -> None:
    """Train once under one run; print the epochs and the best one's metrics."""
    provenance.require_current(params)
    data = prepared.read(PREPARED)
    report = provenance.require_report(REPORT, data)
    tags = {**provenance.tags(data), "seed": str(params.train.seed)}
    values = flatten(params, ("data", "split", "preprocess", *SECTIONS))
    with runs.run("train", f"train-{params.model.name}", values, tags) as run_id:
        runs.log_file(report)
        trained = training.train(params, data, params.model.name)
        metrics = training.log(trained, data)
    print(f"{'epoch':>5} {'train loss':>10} {'val loss':>9} {'val accuracy':>12} {'val macro-F1':>12}")
    for result in trained.history:
        print(f"{result.epoch:>5} {result.train['loss']:>10.3f} {result.validation['loss']:>9.3f} "
              f"{result.validation['accuracy']:>12.3f} {result.validation['macro_f1']:>12.3f}"
              f"{'  <- chosen' if result.epoch == trained.best.epoch else ''}")  # fmt: skip
    print(f"validation fold {params.train.fold}: macro-F1 {metrics['macro_f1']:.3f}, "
          f"accuracy {metrics['accuracy']:.3f}, balanced accuracy {metrics['balanced_accuracy']:.3f}, "
          f"AUC {metrics['macro_auc']:.3f}")  # fmt: skip
    print(f"run {run_id}")
