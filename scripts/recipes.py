"""`make recipes`: train several recipes on the same grouped folds, and write what came of it into docs/results.md.

Each recipe is `mlflow run . -e train -P train.folds=all ...` with what stands in scripts/recipes.yaml, a run in the
experiment `recipes` like any other. Recipes that have a finished run of today's data and split are not trained again,
and one that was stopped goes on. The locked test set takes no part. On two CPU cores a recipe takes the best part of
an hour; two at once, each with `OMP_NUM_THREADS=1` and an `--only` of its own, take less than one after the other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import yaml
from documents import METRICS, RESULTS, SCREENSHOTS, code, renewed, signed
from matplotlib.figure import Figure
from mlflow.entities import Run

from ultrasound import params
from ultrasound.commands import PREPARED
from ultrasound.errors import InputError
from ultrasound.images import prepared
from ultrasound.scoring import comparisons, intervals
from ultrasound.scoring.intervals import Interval
from ultrasound.scoring.metrics import Probabilities, Targets
from ultrasound.tracking import provenance, task
from ultrasound.tracking.classification import CLASSIFICATION

EXPERIMENT = "recipes"
FIGURE = SCREENSHOTS / "recipes.png"
RECIPES = Path("scripts/recipes.yaml")
RESAMPLES = 2000


def main() -> None:
    """Train what is missing, then write the table and the figure."""
    content = yaml.safe_load(RECIPES.read_text())
    recipes = {name: content["common"] | changes for name, changes in content["recipes"].items()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(recipes), default=list(recipes), help="train no others")
    parser.add_argument("--report", action="store_true", help="train nothing; write what finished runs gave")
    arguments = parser.parse_args()
    try:
        for name in arguments.only if not arguments.report else ():
            if finished(recipes[name]) is None:
                subprocess.run(command(recipes[name]), check=True)
        runs = {name: run for name, parameters in recipes.items() if (run := finished(parameters))}
        if not runs:
            raise InputError("no recipe has a finished run of today's data and split")
        commands = "\n".join(" ".join(command(recipes[name])) for name in runs)
        RESULTS.write_text(renewed(RESULTS, "recipes", f"{table(runs)}\n\n```\n{commands}\n```"))
        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        curves(runs).savefig(FIGURE, dpi=110)
        print(f"{RESULTS} and {FIGURE}: renewed with {', '.join(runs)}")
    except InputError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)


def command(parameters: dict[str, Any]) -> list[str]:
    """What a user types to train with these parameters."""
    given = [part for key, value in parameters.items() for part in ("-P", f"{key}={value}")]
    return ["mlflow", "run", ".", "-e", "train", "--env-manager", "local", "--experiment-name", EXPERIMENT, *given]


def finished(parameters: dict[str, Any]) -> Run | None:
    """The newest finished run with these parameters on today's data and split."""
    tags = provenance.tags(prepared.read(PREPARED))
    values = task.parameters(CLASSIFICATION, params.load(parameters))
    values.pop("train.resume")
    wanted = ["tags.verb = 'train'", "attributes.status = 'FINISHED'"]
    wanted += [f"tags.{key} = '{tags[key]}'" for key in provenance.DIGESTS]
    found: list[Run] = mlflow.search_runs(
        filter_string=" AND ".join(wanted), experiment_names=[EXPERIMENT], output_format="list"
    )
    # What was given with -P is logged as it was typed: 0 is 0.0.
    return next((run for run in found if all(_logged(run, key) == value for key, value in values.items())), None)


def table(runs: dict[str, Run]) -> str:
    """The scores of finished recipes with intervals, differences from the first, spread over folds."""
    predictions = {name: _predictions(run) for name, run in runs.items()}
    first, images = next(iter(runs)), next(iter(predictions.values()))
    lines = [f"| recipe | {' | '.join(METRICS.values())} |", f"|---|{'---:|' * len(METRICS)}"]
    lines += [_row(name, [str(score) for score in _scores(predictions[name])]) for name in runs]
    lines += ["", f"| recipe | macro-F1 less that of {first} | AUC less that of {first} | macro-F1 of the folds | "
                  "mean ± sd | best epoch less the last |", "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name, run in runs.items():
        less = [signed(_difference(key, predictions[first], predictions[name])) if name != first else ""
                for key in ("macro_f1", "macro_auc")]  # fmt: skip
        folds = ", ".join(f"{child.data.metrics['best/macro_f1']:.3f}" for child in _folds(run))
        spread = "{folds/macro_f1_mean:.3f} ± {folds/macro_f1_sd:.3f}".format_map(run.data.metrics)
        histories = [_history(child, "macro_f1") for child in _folds(run)]
        flattery = np.mean([max(history.values()) - history[max(history)] for history in histories])
        lines.append(_row(name, [*less, folds, spread, f"{flattery:.3f}"]))
    tags = runs[first].data.tags
    protocol = (
        f"{len(images)} development images in {images['group'].nunique()} groups, predicted out of fold; one seed "
        f"each. Data `{tags['data_digest']}`, split `{tags['split_digest']}`, code `{code(runs[first])}`. In brackets, "
        f"95 % intervals of a bootstrap by group, {RESAMPLES} resamples; differences are paired. "
        "Best epoch less the last: macro-F1 on the validation fold, mean of the folds; what choosing the best epoch "
        "would flatter."
    )
    return "\n".join([*lines, "", protocol])


def curves(runs: dict[str, Run]) -> Figure:
    """Validation loss and macro-F1 by epoch: the mean over the folds, and their range."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "macro_f1"), strict=True):
        for number, (name, run) in enumerate(runs.items()):
            histories = [_history(child, metric) for child in _folds(run)]
            epochs = sorted(histories[0])
            values = np.array([[history[epoch] for epoch in epochs] for history in histories])
            axes.plot(epochs, values.mean(axis=0), "o-", ms=3, color=f"C{number}", label=name)
            axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=f"C{number}", alpha=0.12)
        axes.set(xlabel="epoch", title=f"validation {METRICS.get(metric, metric)}, mean and range of the folds")
        axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _logged(run: Run, key: str) -> Any:
    return yaml.safe_load(run.data.params.get(key, ""))


def _history(run: Run, metric: str) -> dict[int, float]:
    """Epoch -> a validation metric."""
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, f"validation/{metric}")
    return {point.step: point.value for point in points}


def _folds(run: Run) -> list[Run]:
    found: list[Run] = mlflow.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}' AND tags.verb = 'fold'",
        output_format="list",
    )  # fmt: skip
    return sorted(found, key=lambda child: int(child.data.tags["fold"]))


def _predictions(run: Run) -> pd.DataFrame:
    file = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/tables/predictions_out_of_fold.csv")
    return pd.read_csv(file).sort_values("image_id", ignore_index=True)


def _answers(predictions: pd.DataFrame) -> tuple[Targets, Probabilities]:
    columns = [column for column in predictions.columns if column.startswith("p_")]
    labels = [column.removeprefix("p_") for column in columns]
    return predictions["label"].map(labels.index).to_numpy(), predictions[columns].to_numpy()


def _scores(predictions: pd.DataFrame) -> list[Interval]:
    """The scores of METRICS; not as logged, so that all recipes have the intervals of today's code."""
    targets, probabilities = _answers(predictions)
    statistics = {metric: intervals.mean_of(metric, targets, [probabilities]) for metric in METRICS}
    drawn = intervals.bootstrap(statistics, predictions["group"].to_numpy(), RESAMPLES, comparisons.SEED)
    return [intervals.interval(drawn[metric]) for metric in METRICS]


def _difference(metric: str, first: pd.DataFrame, second: pd.DataFrame) -> Interval:
    """How much higher the second predictions score than the first, on the same resamples."""
    targets, before = _answers(first)
    _, after = _answers(second)
    return comparisons.difference(metric, targets, [before], [after], first["group"].to_numpy(), RESAMPLES)


def _row(name: str, cells: list[str]) -> str:
    return f"| {' | '.join([name, *cells])} |"


if __name__ == "__main__":
    main()
