"""`make bench-search`: what the search costs beside the training, and what stopping trials early saves.

overhead: a study of trials that do nothing, in seconds a trial for Optuna, the lock and the child run in MLflow with
its parameters, metrics and table, by quarter of the study, so that growth would show. On a SQLite study and store of
its own.

pruning: the same search on phantoms with and without `tune.prune_epochs` and `tune.prune_folds`, for several seeds;
epochs that were trained, and the best score.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import optuna
import pandas as pd
import yaml

from ultrasound import params as parameters
from ultrasound.search import session, space, study, trials, workers
from ultrasound.tracking import runs

PROJECT = Path(__file__).resolve().parents[1]
# As in the tests: phantoms, a tiny network. The space holds values that cannot learn, as wide spaces do.
SMALL: dict[str, dict[str, Any]] = {
    "data": {"source": "phantom", "count": 150},
    "split": {"folds": 5},
    "preprocess": {"size": 64},
    "model": {"name": "tf_efficientnet_lite0", "weights": "packaged", "head_width": 32},
    "train": {"epochs": 8, "batch_size": 16, "ema": 0, "freeze": 0},
    "tune": {"startup_trials": 4, "repeats": 0, "offer": False,
             "space": {"train.learning_rate": {"low": 1e-6, "high": 1e-2, "log": True},
                       "model.dropout": {"low": 0.0, "high": 0.6}}},
}  # fmt: skip
UNPRUNED = {"tune.prune_epochs": "none", "tune.prune_folds": 0}


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "pruning"])
    parser.add_argument("--trials", type=int, help="of a study (default: overhead 200, pruning 16)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="pruning: of the searches (0 1 2)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "overhead":
            os.chdir(folder)
            overhead(arguments.trials or 200)
        else:
            pruning(Path(folder), arguments.trials or 16, arguments.seeds)


def overhead(count: int) -> None:
    """Print seconds a trial, by quarter of the study."""
    mlflow.set_tracking_uri(f"sqlite:///{Path.cwd()}/mlflow.db")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    changes = {"tune.storage": f"sqlite:///{Path.cwd()}/study.db", "tune.trials": count}
    chosen = parameters.load(changes, PROJECT / "params.yaml")
    ended: list[float] = []
    data: Any = SimpleNamespace(data_digest="none", split_digest="none")
    shown = parameters.flatten(chosen, ("model", "augment", "train"))
    answers = pd.DataFrame({"image_id": range(600), "predicted": "benign"})
    with session.opened(chosen, data, {}, {}) as search:

        def objective(trial: optuna.Trial) -> float:
            study.retried(trial)
            with runs.child("trial", trials.name(trial.number), shown, {"trial": str(trial.number)}) as run_id:
                trial.set_user_attr(study.RUN, run_id)
                value = sum(space.suggest(trial, chosen).values(), 0.0)
                trial.report(value, 1)
                trial.should_prune()
                runs.log_metrics({"value": value}, "trivial")
                runs.log_table(answers, "predictions_out_of_fold")
            return value

        def note(found: optuna.Study) -> None:
            session.progress(found)
            ended.append(time.perf_counter())

        ended.append(time.perf_counter())
        workers.work(search.study, study.storage_address(chosen.tune), count, float("inf"), objective, note)
    taken = [after - before for before, after in itertools.pairwise(ended)]
    print(f"{count} trials that do nothing; seconds a trial, median (least to most)")
    for quarter in range(4):
        part = taken[quarter * count // 4 : (quarter + 1) * count // 4]
        name = f"trials {quarter * count // 4} to {(quarter + 1) * count // 4 - 1}"
        print(f"  {name:<18} {statistics.median(part):.3f} ({min(part):.3f} to {max(part):.3f})")


def pruning(folder: Path, count: int, seeds: list[int]) -> None:
    """Print epochs and best score of searches with and without pruning."""
    project = _project(folder / "project")
    print(f"{count} trials a search, {SMALL['split']['folds']} folds of {SMALL['train']['epochs']} epochs at most, "
          f"{SMALL['data']['count']} phantoms")  # fmt: skip
    print(f"{'seed':>4} {'epochs, all':>12} {'pruned':>8} {'saved':>6} {'best, all':>10} {'pruned':>8}")
    for seed in seeds:
        (all_epochs, all_best), (epochs, best) = (
            _searched(project, f"{kind}-{seed}", {"tune.seed": seed, "tune.trials": count} | changes)
            for kind, changes in (("all", UNPRUNED), ("pruned", {}))
        )
        print(f"{seed:>4} {all_epochs:>12} {epochs:>8} {1 - epochs / all_epochs:>6.0%} {all_best:>10.3f} {best:>8.3f}",
              flush=True)  # fmt: skip


def _project(folder: Path) -> Path:
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    for name in listed.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((PROJECT / name).read_bytes())
    values = yaml.safe_load((PROJECT / "params.yaml").read_text())
    for section, changes in SMALL.items():
        values[section] |= changes
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run(["dvc", "repro", "--quiet"], cwd=folder, check=True)
    return folder


def _searched(project: Path, name: str, changes: dict[str, Any]) -> tuple[int, float]:
    """Epochs and best score of a search."""
    options = [part for key, value in changes.items() for part in (f"--{key}", str(value))]
    subprocess.run(
        [sys.executable, "-m", "ultrasound", "tune", "--tune.study", name, *options], cwd=project, check=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": "src"},
    )  # fmt: skip
    found = optuna.load_study(study_name=name, storage=f"sqlite:///{project}/build/optuna.db")
    client = mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")
    epochs = 0
    for trial in found.trials:
        metrics = client.get_run(trial.user_attrs[study.RUN]).data.metrics
        names = [metric for metric in metrics if metric.endswith("train/loss")]
        epochs += sum(len(client.get_metric_history(trial.user_attrs[study.RUN], metric)) for metric in names)
    return epochs, found.best_value


if __name__ == "__main__":
    main()
