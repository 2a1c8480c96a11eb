"""`python scripts/results.py search|compare|evaluation RUN`: write what a finished run gave into docs/results.md.

RUN is the id of a run of `tune`, `compare` or `evaluate` in the tracking store. Each kind of run has a section of the
document between two comments; everything between them is written anew, nothing else is touched. An evaluation also
gives MODEL_CARD.md, which is the card that its run holds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import mlflow
import pandas as pd
import yaml
from documents import METRICS, RESULTS, SCREENSHOTS, code, renewed
from mlflow.entities import Run

from ultrasound.errors import InputError

CARD = Path("MODEL_CARD.md")
FIGURES = {"search": ("history", "importances", "parallel_coordinates"), "compare": ("score_against_latency",),
           "evaluation": ("confusion_test", "roc_test", "reliability_test", "slices_test")}  # fmt: skip
VERBS = {"search": "tune", "compare": "compare", "evaluation": "evaluate"}


def main() -> None:
    """Write one section and copy its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(VERBS))
    parser.add_argument("run", help="id of the run")
    arguments = parser.parse_args()
    try:
        run = _run(arguments.run, VERBS[arguments.kind])
        numbers = {"search": search, "compare": comparison, "evaluation": evaluation}[arguments.kind](run)
        text = renewed(RESULTS, arguments.kind, numbers)
        files = {
            SCREENSHOTS / f"{arguments.kind}-{name}.png": f"figures/{name}.png" for name in FIGURES[arguments.kind]
        }
        if arguments.kind == "evaluation":
            files[CARD] = "model_card.md"
        fetched = {target: _artifact(run, path) for target, path in files.items()}  # all, before any is written
        RESULTS.write_text(text)
        for target, file in fetched.items():
            shutil.copy(file, target)
        print(f"{RESULTS}: section {arguments.kind} renewed from run {arguments.run}")
    except InputError as error:
        sys.exit(f"error: {error}")


def search(run: Run) -> str:
    """What a search found: trials, the best parameters, and what they are worth with seeds that had no part in it."""
    trials = pd.read_csv(_artifact(run, "tables/trials.csv"))
    counts = ", ".join(f"{number} {state}" for state, number in trials["state"].value_counts().items())
    best = yaml.safe_load(Path(_artifact(run, "best_params.yaml")).read_text())
    params, values = run.data.params, run.data.metrics
    found = trials.set_index("trial").loc[int(values["best/trial"])]
    metric = METRICS.get(params["tune.metric"], params["tune.metric"])
    # The trial with the defaults may have been stopped, and tried again under another number.
    defaults = trials[trials["origin"].str.startswith("params.yaml") & (trials["state"] == "complete")]
    standing = f", and `params.yaml` as it stands {defaults['value'].iloc[0]:.3f}" if len(defaults) else ""
    lines = [f"{len(trials)} trials of `{params['model.name']}` ({params['model.weights']} weights): {counts}. "
             f"The best, trial {found.name}, had {metric} {found['value']:.3f} out of fold{standing}.", "",
             "```yaml", yaml.safe_dump(best, sort_keys=False).strip(), "```", ""]  # fmt: skip
    lines += ["| macro-F1 out of fold | seeds | of the folds, mean ± sd |", "|---|---:|---:|"]
    for kind, name in (("best", "best parameters"), ("defaults", "params.yaml")):
        if f"repeats_{kind}/macro_f1" in values:
            seeds = mlflow.MlflowClient().get_metric_history(run.info.run_id, f"repeats_{kind}/macro_f1")
            spread = f"{values[f'repeats_{kind}/macro_f1_mean']:.3f} ± {values[f'repeats_{kind}/macro_f1_sd']:.3f}"
            lines.append(f"| {name} | {', '.join(f'{seed.value:.3f}' for seed in seeds)} | {spread} |")
    gained = {name: [values[f"gain/{key}{end}"] for end in ("", "_low", "_high")]
              for key, name in METRICS.items() if f"gain/{key}" in values}  # fmt: skip
    if gained:
        lines += ["", "| gain over params.yaml, same seeds | value, 95 % interval |", "|---|---:|"]
        lines += [
            f"| {name} | {value:+.3f} ({low:+.3f} to {high:+.3f}) |" for name, (value, low, high) in gained.items()
        ]
    return "\n".join([*lines, "", provenance(run)])


def comparison(run: Run) -> str:
    """Backbones side by side."""
    table = pd.read_csv(_artifact(run, "tables/comparison.csv"))
    first = table["model"].iloc[0]
    lines = [f"| model | macro-F1 | less that of {first} | p | AUC | M weights | GFLOP | latency, ms | training, min |",
             "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for _, row in table.iterrows():
        scores = ["{:.3f} ({:.3f} to {:.3f})".format(*(row[f"{key}{end}"] for end in ("", "_low", "_high")))
                  for key in ("macro_f1", "macro_auc")]  # fmt: skip
        less = "" if row["model"] == first else "{:+.3f} ({:+.3f} to {:+.3f})".format(
            *(row[f"macro_f1_less_first{end}"] for end in ("", "_low", "_high")))  # fmt: skip
        p = "" if row["model"] == first else f"{row['mcnemar_p']:.3f}" if row["mcnemar_p"] >= 0.001 else "< 0.001"
        costs = (row["parameters"] / 1e6, row["operations"] / 1e9, row["latency_ms"], row["training_s"] / 60)
        cells = [row["model"], scores[0], less, p, scores[1], *("{:.1f} {:.2f} {:.0f} {:.1f}".format(*costs).split())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", provenance(run)])


def evaluation(run: Run) -> str:
    """A model on the locked test set: the tables of its model card."""
    content = json.loads(Path(_artifact(run, "evaluation.json")).read_text())
    text = Path(_artifact(run, "model_card.md")).read_text()
    tables = text.split("## Quantitative analyses\n", 1)[1].split("\n## ", 1)[0].strip()
    uri, tags = content["model_uri"], run.data.tags
    trained = mlflow.search_runs(filter_string=f"tags.model_uri = '{uri}'", search_all_experiments=True,
                                 max_results=1, output_format="list")[0]  # fmt: skip
    given = ", ".join(f"{key} {trained.data.params[key]}" for key in ("model.name", "model.weights", "train.folds"))
    return (
        f"{content['images']} test images in {content['groups']} groups; {given}. The same numbers as in the "
        f"[model card](../MODEL_CARD.md), by the same command.\n\n{tables}\n\n"
        f"In brackets, 95 % intervals of a bootstrap by group, {content['resamples']} resamples. Data "
        f"`{tags['data_digest']}`, split `{tags['split_digest']}`, code `{code(run)}`."
    )


def provenance(run: Run) -> str:
    """What names data, code and protocol of a run."""
    tags = run.data.tags
    params = run.data.params
    size = params["preprocess.size"]
    return (f"{size} x {size} pixels; folds: {params[tags['verb'] + '.folds']} of {params['split.folds']}, "
            f"{params['train.epochs']} epochs each. Data `{tags['data_digest']}`, split `{tags['split_digest']}`, code "
            f"`{code(run)}`.")  # fmt: skip


def _run(run_id: str, verb: str) -> Run:
    try:
        run = mlflow.get_run(run_id)
    except mlflow.MlflowException:
        raise InputError(f"run {run_id!r} does not exist in {mlflow.get_tracking_uri()}") from None
    if run.data.tags.get("verb") != verb or run.info.status != "FINISHED":
        raise InputError(f"run {run_id} is no finished run of {verb}")
    return run


def _artifact(run: Run, path: str) -> str:
    try:
        return str(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/{path}"))
    except mlflow.MlflowException:
        raise InputError(f"run {run.info.run_id} holds no {path}") from None


if __name__ == "__main__":
    main()
