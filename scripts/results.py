"""`python scripts/results.py KIND RUN`: write what a finished run gave into docs/results.md.

KIND is search, compare, segment, evaluation or segment-test, RUN the id of a run of `tune`, `compare`, `segment` or
`evaluate` in the tracking store; the last two kinds are evaluations of a classifier and of a segmenter. Each kind has a
section of the document between two comments; everything between them is written anew, nothing else is touched. The
evaluation of a classifier also gives MODEL_CARD.md, which is the card that its run holds.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import mlflow
import pandas as pd
import yaml
from documents import METRICS, RESULTS, SCREENSHOTS, artifact, code, finished, renewed
from mlflow.entities import Run

from ultrasound.errors import InputError
from ultrasound.scoring import outlines
from ultrasound.scoring.intervals import Interval
from ultrasound.tracking import store

CARD = Path("MODEL_CARD.md")
FIGURES = {"search": ("history", "importances", "parallel_coordinates"), "compare": ("score_against_latency",),
           "segment": (), "segment-test": (),
           "evaluation": ("confusion_test", "roc_test", "reliability_test", "slices_test")}  # fmt: skip
VERBS = {"search": "tune", "compare": "compare", "segment": "segment", "evaluation": "evaluate",
         "segment-test": "evaluate"}  # fmt: skip


def main() -> None:
    """Write one section and copy its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(VERBS))
    parser.add_argument("run", help="id of the run")
    arguments = parser.parse_args()
    try:
        run = finished(arguments.run, VERBS[arguments.kind])
        written = {"search": search, "compare": comparison, "segment": segmentation, "evaluation": evaluation,
                   "segment-test": tested_outlines}  # fmt: skip
        numbers = written[arguments.kind](run)
        text = renewed(RESULTS, arguments.kind, numbers)
        files = {
            SCREENSHOTS / f"{arguments.kind}-{name}.png": f"figures/{name}.png" for name in FIGURES[arguments.kind]
        }
        if arguments.kind == "evaluation":
            files[CARD] = "model_card.md"
        fetched = {target: artifact(run, path) for target, path in files.items()}  # all, before any is written
        RESULTS.write_text(text)
        for target, file in fetched.items():
            shutil.copy(file, target)
        print(f"{RESULTS}: section {arguments.kind} renewed from run {arguments.run}")
    except InputError as error:
        sys.exit(f"error: {error}")


def search(run: Run) -> str:
    """What a search found: trials, the best parameters, and what they are worth with seeds that had no part in it."""
    trials = pd.read_csv(artifact(run, "tables/trials.csv"))
    counts = ", ".join(f"{number} {state}" for state, number in trials["state"].value_counts().items())
    best = yaml.safe_load(Path(artifact(run, "best_params.yaml")).read_text())
    params, values = run.data.params, run.data.metrics
    found = trials.set_index("trial").loc[int(values["best/trial"])]
    metric = METRICS.get(params["tune.metric"], params["tune.metric"])
    # The trial with the defaults may have been stopped, and tried again under another number.
    defaults = trials[trials["origin"].str.startswith("params.yaml") & (trials["state"] == "complete")]
    standing = f", and `params.yaml` as it stands {defaults['value'].iloc[0]:.3f}" if len(defaults) else ""
    lines = [f"{len(trials)} trials of `{params['model.name']}` ({params['model.weights']} weights): {counts}. "
             f"The best, trial {found.name}, had {metric} {found['value']:.3f} out of fold{standing}.", "",
             "```yaml", yaml.safe_dump(best, sort_keys=False).strip(), "```", ""]  # fmt: skip
    main = "dice" if params["tune.metric"] in outlines.METRICS else "macro_f1"  # what ranks runs of the task
    if main == "dice":
        lines += ["The trials' outlines are all that is more probable than a half, those below by a chosen rule.", ""]
    lines += [f"| {METRICS.get(main, main)} out of fold | seeds | of the folds, mean ± sd |", "|---|---:|---:|"]
    for kind, name in (("best", "best parameters"), ("defaults", "params.yaml")):
        if (key := f"repeats_{kind}/{main}") in values:
            seeds = mlflow.MlflowClient().get_metric_history(run.info.run_id, key)
            spread = f"{values[f'{key}_mean']:.3f} ± {values[f'{key}_sd']:.3f}"
            lines.append(f"| {name} | {', '.join(f'{seed.value:.3f}' for seed in seeds)} | {spread} |")
    gained = {METRICS.get(key, key): [values[f"gain/{key}{end}"] for end in ("", "_low", "_high")]
              for key in (*METRICS, *outlines.METRICS) if f"gain/{key}" in values}  # fmt: skip
    if gained:
        lines += ["", "| gain over params.yaml, same seeds | value, 95 % interval |", "|---|---:|"]
        lines += [
            f"| {name} | {value:+.3f} ({low:+.3f} to {high:+.3f}) |" for name, (value, low, high) in gained.items()
        ]
    return "\n".join([*lines, "", provenance(run)])


def comparison(run: Run) -> str:
    """Backbones side by side."""
    table = pd.read_csv(artifact(run, "tables/comparison.csv"))
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


def segmentation(run: Run) -> str:
    """Outlines out of fold: every metric with its interval, and the slices."""
    values, params = run.data.metrics, run.data.params
    table = pd.read_csv(artifact(run, "tables/outlines_out_of_fold.csv"))
    rules = list(json.loads(Path(artifact(run, "rules_of_folds.json")).read_text()).values())
    lesions = int(table["lesion"].sum())
    network = f"`{params['model.name']}` ({params['model.weights']} weights), width {params['segment.width']}"
    scores = {
        name: Interval(*(values.get(f"out_of_fold/{name}{end}", math.nan) for end in ("", "_low", "_high")))
        for name in outlines.METRICS
    }
    tables = outline_tables(scores, pd.read_csv(artifact(run, "tables/slices_out_of_fold.csv")))
    span = {key: (min(rule[key] for rule in rules), max(rule[key] for rule in rules)) for key in rules[0]}
    chosen = (
        "Rules of the folds, each chosen on the others: edge {edge[0]} to {edge[1]} of 255, core {core[0]} to "
        "{core[1]}, regions of at least {smallest[0]:.2%} to {smallest[1]:.2%} of the image."
    ).format_map(span)
    return "\n".join([
        f"U-Net over {network}; {len(table)} images, {lesions} with a lesion.", "", *tables, "",
        f"{chosen} {provenance(run)}",
    ])  # fmt: skip


def tested_outlines(run: Run) -> str:
    """A segmenter on the locked test set: every metric with its interval, and the slices."""
    content = json.loads(Path(artifact(run, "evaluation.json")).read_text())
    table = pd.read_csv(artifact(run, "tables/outlines_test.csv"))
    trained, rule = training(content["model_uri"], "segmenter"), content["rule"]
    if parent := trained.data.tags.get("mlflow.parentRunId"):
        raise InputError(f"run {trained.info.run_id} is a part of run {parent}: results are of whole runs")
    keys = ("model.name", "model.weights", "segment.width", "train.folds", "train.refit", "train.ensemble")
    given = ", ".join(f"{key} {trained.data.params[key]}" for key in keys)
    scores = {
        name: Interval(*(math.nan if end is None else end for end in ends)) for name, ends in content["scores"].items()
    }
    return "\n".join([
        f"{len(table)} test images in {content['groups']} groups, {int(table['lesion'].sum())} with a lesion; "
        f"{given}.", "", *outline_tables(scores, pd.read_csv(artifact(run, "tables/slices_test.csv"))), "",
        f"Rule, chosen on {rule['chosen_on']} development images out of fold: edge {rule['edge']} of 255, core "
        f"{rule['core']}, regions of at least {rule['smallest']:.2%} of the image. {provenance(trained)}",
    ])  # fmt: skip


def outline_tables(scores: Mapping[str, Interval], slices: pd.DataFrame) -> list[str]:
    """Lines of two tables: every metric with its interval, and the slices."""
    lines = ["| metric | value, 95 % interval | definition |", "|---|---:|---|"]
    lines += [f"| {name} | {scores[name]} | {metric.definition} |" for name, metric in outlines.METRICS.items()]
    lines += ["", "| images | number | Dice of lesions | false lesions |", "|---|---:|---:|---:|"]
    for _, row in slices.iterrows():
        of_slice = [Interval(*(row[f"{name}{end}"] for end in ("", "_low", "_high")))
                    for name in ("lesion_dice", "false_lesion_rate")]  # fmt: skip
        shown = ["" if score.value != score.value else str(score) for score in of_slice]
        few = " (few)" if row["small"] else ""
        lines.append(f"| {row['by']}: {row['slice']}{few} | {row['images']} | {' | '.join(shown)} |")
    return lines


def evaluation(run: Run) -> str:
    """A model on the locked test set: the tables of its model card."""
    content = json.loads(Path(artifact(run, "evaluation.json")).read_text())
    text = Path(artifact(run, "model_card.md")).read_text()
    tables = text.split("## Quantitative analyses\n", 1)[1].split("\n## ", 1)[0].strip()
    trained, tags = training(content["model_uri"], "classifier"), run.data.tags
    given = ", ".join(f"{key} {trained.data.params[key]}" for key in ("model.name", "model.weights", "train.folds"))
    return (
        f"{content['images']} test images in {content['groups']} groups; {given}. The same numbers as in the "
        f"[model card](../MODEL_CARD.md), by the same command.\n\n{tables}\n\n"
        f"In brackets, 95 % intervals of a bootstrap by group, {content['resamples']} resamples. Data "
        f"`{tags['data_digest']}`, split `{tags['split_digest']}`, code `{code(run)}`."
    )


def training(uri: str, kind: str) -> Run:
    """The run that made a model of a kind, classifier or segmenter.

    Raises:
        InputError: there is none.
    """
    tag = {"classifier": store.MODEL_TAG, "segmenter": store.SEGMENTER_TAG}[kind]
    found = mlflow.search_runs(filter_string=f"tags.{tag} = '{uri}'", search_all_experiments=True, max_results=1,
                               output_format="list")  # fmt: skip
    if not found:
        raise InputError(f"{uri} is no {kind} of {mlflow.get_tracking_uri()}")
    return found[0]


def provenance(run: Run) -> str:
    """What names data, code and protocol of a run."""
    tags = run.data.tags
    params = run.data.params
    size, section = params["preprocess.size"], "train" if tags["verb"] == "segment" else tags["verb"]
    return (f"{size} x {size} pixels; folds: {params[section + '.folds']} of {params['split.folds']}, "
            f"{params['train.epochs']} epochs each. Data `{tags['data_digest']}`, split `{tags['split_digest']}`, code "
            f"`{code(run)}`.")  # fmt: skip


if __name__ == "__main__":
    main()
