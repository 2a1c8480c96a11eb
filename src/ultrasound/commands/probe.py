"""The baseline that every fine-tuning must beat: frozen features of the backbone and a logistic regression.

Run as `mlflow run . -e probe --env-manager local`, or alone: `python -m ultrasound probe`. Predicts every development
image out of fold, on the folds of the split, in about a minute on a CPU. The locked test set is not touched.
"""

from ultrasound.commands import PREPARED, REPORT
from ultrasound.images import prepared
from ultrasound.params import flatten
from ultrasound.sections import Params
from ultrasound.tracking import comparison, provenance, runs

SECTIONS = ("model",)


def run(params: Params) -> None:
    """Probe under one run; print the scores with intervals."""
    provenance.require_current(params)
    data = prepared.read(PREPARED)
    page = provenance.require_report(REPORT, data)
    tags = {**provenance.tags(data), "seed": str(params.train.seed)}
    values = flatten(params, ("data", "split", "preprocess", *SECTIONS))
    with runs.run("probe", f"probe-{params.model.name}", values, tags) as run_id:
        runs.log_file(page)
        found = comparison.probe(params, data)
    print(f"frozen {params.model.name} ({params.model.weights} weights), logistic regression; out of fold, "
          f"{len(found.probabilities)} images; in brackets 95 % intervals of a bootstrap by group")  # fmt: skip
    for metric, (value, low, high) in found.scores.items():
        print(f"  {metric:<18} {value:.3f} ({low:.3f} to {high:.3f})")
    print(f"run {run_id}")
