"""Compare backbones: the same folds, recipe and seed for each, and the probe as the least that any must beat.

Run as `mlflow run . -e compare --env-manager local -P 'compare.models=[resnet50, densenet121]'`, or alone: `python -m
ultrasound compare`. Every model is a child run; the parent holds the table with intervals, paired differences from
the first model, costs, and a figure of score against latency. The locked test set is not touched. A comparison that
was stopped is continued by the same command.
"""

from ultrasound.commands import CHECKPOINTS, PREPARED, REPORT
from ultrasound.images import prepared
from ultrasound.params import flatten
from ultrasound.scoring.intervals import Interval
from ultrasound.sections import Params
from ultrasound.tracking import comparison, provenance, runs
from ultrasound.tracking.classification import CLASSIFICATION
from ultrasound.tracking.resume import Resume
from ultrasound.tracking.task import meaningful

SECTIONS = ("compare", "model", "augment", "train")
TASK = "classification"


def run(params: Params) -> None:
    """Compare under one run; print the table."""
    provenance.require_current(params)
    data = prepared.read(PREPARED)
    comparison.check(params, data)
    page = provenance.require_report(REPORT, data)
    tags = {**provenance.tags(data), "seed": str(params.train.seed)}
    values = meaningful(CLASSIFICATION, flatten(params, ("data", "split", "preprocess", *SECTIONS)))
    resume = Resume(provenance.resume_key("compare", values, tags), CHECKPOINTS) if params.train.resume else None
    with runs.run("compare", f"compare-{len(params.compare.models)}-models", values, tags, resume) as run_id:
        runs.log_file(page)
        found = comparison.compare(params, data, tags, CHECKPOINTS / run_id)
        comparison.log(found, params, data)
    print(f"out of fold, {len(found[0].probabilities)} images, {len(params.compared_folds)} folds; in brackets 95 % "
          f"intervals of a bootstrap by group; differences are paired with {found[0].name}")  # fmt: skip
    print(f"{'model':<28} {'macro-F1':<22} {'difference':<25} {'p':>6} {'AUC':<22} {'M weights':>9} {'GFLOP':>6} "
          f"{'ms':>6} {'train s':>8}")  # fmt: skip
    for each in found:
        difference = _cell(each.differences["macro_f1"], "+") if each.differences else ""
        p = f"{each.p:.3f}" if each.differences else ""
        weights, operations, milliseconds = each.cost
        print(f"{each.name:<28} {_cell(each.scores['macro_f1']):<22} {difference:<25} {p:>6} "
              f"{_cell(each.scores['macro_auc']):<22} {weights / 1e6:>9.1f} {operations / 1e9:>6.2f} "
              f"{milliseconds:>6.1f} {each.seconds:>8.0f}")  # fmt: skip
    print("p: McNemar, exact; weights, operations and latency (one image, CPU, torch) are of backbone and head")
    print(f"run {run_id}")


def _cell(score: Interval, sign: str = "") -> str:
    return f"{score.value:{sign}.3f} ({score.low:{sign}.3f} to {score.high:{sign}.3f})"
