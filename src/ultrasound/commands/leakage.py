"""Measure what random folds pretend: the same recipe on random folds and on folds that keep near-duplicates together.

Run as `mlflow run . -e leakage --env-manager local`, or alone: `python -m ultrasound leakage`. The default recipe, a
logistic regression on frozen features, takes a minute or two on a CPU; `-P leakage.recipe=finetune` trains in every
fold as `train` does. Also lists labels that the predictions contradict, and changes none. The locked test set is not
touched.
"""

from ultrasound.commands import PREPARED, REPORT
from ultrasound.images import prepared
from ultrasound.learning import probe
from ultrasound.params import flatten
from ultrasound.sections import Params
from ultrasound.tracking import leakage, provenance, runs

SECTIONS = ("leakage",)


def run(params: Params) -> None:
    """Compare under one run; print the protocol in words, both scores and the difference."""
    provenance.require_current(params)
    data = prepared.read(PREPARED)
    report = provenance.require_report(REPORT, data)
    settings, model = params.leakage, params.model
    finetune = settings.recipe == "finetune"
    sections = ("data", "split", "preprocess", "leakage", *(("model", "augment", "train") if finetune else ()))
    name = f"leakage-{settings.recipe}-{model.name if finetune else settings.backbone}"
    with runs.run("leakage", name, flatten(params, sections), provenance.tags(data)) as run_id:
        runs.log_file(report)
        found = leakage.compare(params, data)
        leakage.log(found, params, data)
    samples = found.samples
    counts = ", ".join(f"{(samples['label'] == label).sum()} {label}" for label in found.labels)
    print(f"{len(samples)} development images ({counts}) in {samples['group'].nunique()} groups of near-duplicates; "
          "the locked test set takes no part")  # fmt: skip
    print(f"random folds: stratified by label only; grouped folds: no group stands on both sides; "
          f"{params.split.folds} folds each, fold seeds 0 to {settings.seeds - 1}")  # fmt: skip
    if finetune:
        print(f"recipe finetune: {model.name} ({model.weights} weights), trained as `train` does, up to "
              f"{params.train.epochs} epochs; both protocols take the {params.train.choose} epoch")  # fmt: skip
    else:
        print(f"recipe probe: frozen {settings.backbone} ({settings.weights} weights), standardised features, logistic "
              f"regression (C = {probe.REGULARISATION:g})")  # fmt: skip
    print(f"data digest {data.data_digest}, split digest {data.split_digest}")
    print(" " * 12 + "".join(f"{metric:<37}" for metric in leakage.METRICS).rstrip())
    for protocol, scores in found.scores.items():
        sign = "+" if protocol == leakage.DIFFERENCE else ""
        cells = []
        for metric, score in scores.items():
            cell = f"{score.value:{sign}.3f} ({score.low:{sign}.3f} to {score.high:{sign}.3f})"
            if settings.seeds > 1:
                cell += f" sd {leakage.deviation(found.repetitions[protocol][metric]):.3f}"
            cells.append(f"{cell:<37}")
        print(f"{protocol:<12}" + "".join(cells).rstrip())
    over = "; means and sd over the seeds" if settings.seeds > 1 else ""
    print(f"difference = random - grouped{over}; in brackets 95 % intervals of a bootstrap by group "
          f"({settings.resamples} resamples)")  # fmt: skip
    print(f"{len(found.suspects)} suspect labels, by the probabilities of grouped folds: tables/suspect_labels.csv; "
          "a list to look at, no label was changed")  # fmt: skip
    print(f"run {run_id}")
