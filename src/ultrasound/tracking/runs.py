"""MLflow runs: start, join or continue one, and log what an experiment gives.

A run carries the process that works on it and when that was last seen alive, so that the next start can close what a
killed process has left open. Where several processes train together, only the main one logs.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

import mlflow
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mlflow.data.sources import LocalArtifactDatasetSource
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
from numpy.typing import NDArray

from ultrasound import NOTICE
from ultrasound.errors import signals_wait
from ultrasound.images.prepared import Prepared
from ultrasound.learning.loop import EpochResult
from ultrasound.learning.processes import is_main
from ultrasound.tracking import heartbeat, store
from ultrasound.tracking import resume as resuming
from ultrasound.tracking.resume import Resume

P = ParamSpec("P")

INHERITED = ("data_digest", "split_digest", "dvc_lock", "git_commit", "code_digest", "ultrasound_version", "seed")
SYSTEM_METRICS_SECONDS = 5

_muted = False  # inside a child that an earlier process has finished

logging.getLogger("mlflow.system_metrics.system_metrics_monitor").setLevel(logging.WARNING)


def unless_muted(function: Callable[P, None]) -> Callable[P, None]:
    """Make a function that logs do nothing in a process or child that is not to log."""

    @functools.wraps(function)
    def logged(*args: P.args, **kwargs: P.kwargs) -> None:
        if is_main() and not _muted:
            with signals_wait():
                function(*args, **kwargs)

    return logged


@contextmanager
def run(
    verb: str, name: str, parameters: Mapping[str, Any], tags: Mapping[str, str], resume: Resume | None = None,
    continued: str | None = None,
) -> Iterator[str]:  # fmt: skip
    """Continue an unfinished run, join the one that `mlflow run` has made, or start one; yields its id.

    The run ends as FINISHED, as FAILED with the reason in its tag `failure`, or as KILLED by Ctrl-C or SIGTERM. Runs
    whose process is gone are closed first.

    Args:
        verb: the command, kept as a tag.
        name: shown in the UI's list of runs.
        parameters: logged unless `mlflow run -P` has logged them already.
        resume: what tells an unfinished run of the same thing; None starts anew.
        continued: id of the run to continue, where the caller knows it.

    Raises:
        InputError: the tracking store cannot hold artifacts of this process.
    """
    if not is_main():
        yield ""
        return
    if not MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.defined:
        mlflow.set_system_metrics_sampling_interval(SYSTEM_METRICS_SECONDS)
    with signals_wait():
        heartbeat.sweep()
    marks = {**heartbeat.marks(), **({resuming.TAG: resume.key} if resume else {})}
    with contextlib.ExitStack() as held, signals_wait():
        unfinished = continued or (resuming.unfinished(resume, held) if resume else None)
        if unfinished:
            resuming.point_to(unfinished, os.environ.pop("MLFLOW_RUN_ID", None))
        active = mlflow.start_run(unfinished, run_name=name, log_system_metrics=True, tags=marks)
        run_id = active.info.run_id
        if resume and not unfinished:
            resuming.claim(resume, run_id, held)
        with active, _told_end():
            _describe(run_id, verb, parameters, tags)
            store.require_artifacts(active.info.artifact_uri)
            with heartbeat.beating(run_id), signals_wait(False):
                yield run_id
        if resume:  # it has ended well: there is nothing left to continue
            shutil.rmtree(resume.folder / run_id, ignore_errors=True)


@contextmanager
def child(
    verb: str, name: str, parameters: Mapping[str, Any], tags: Mapping[str, str], parent_id: str | None = None
) -> Iterator[str]:
    """Start a child of the active run, or continue that of an earlier process; yields its id. Ends as `run` does.

    Nothing is logged with a child that has finished before.

    Args:
        parent_id: a run of another process whose child it is instead.
    """
    global _muted
    if not is_main():
        yield ""
        return
    with signals_wait():
        parent = mlflow.get_run(parent_id) if parent_id else mlflow.active_run()
        earlier = _child_of(parent, name) if parent else None
        inherited = _inherited(parent) if parent else {}
    if earlier and earlier.info.status == "FINISHED":
        _muted = True
        try:
            yield earlier.info.run_id
        finally:
            _muted = False
        return
    with (
        signals_wait(),
        mlflow.start_run(
            earlier.info.run_id if earlier else None,
            run_name=name,
            nested=True,
            tags=heartbeat.marks(),
            experiment_id=parent.info.experiment_id if parent else None,
            parent_run_id=parent_id,
        ) as active,  # fmt: skip
        _told_end(),
    ):
        _describe(active.info.run_id, verb, parameters, {**inherited, **tags})
        with heartbeat.beating(active.info.run_id), signals_wait(False):
            yield active.info.run_id


def logged_epochs(prefix: str = "") -> set[int]:
    """Epochs whose metrics the active run holds already, under names with this prefix."""
    active = mlflow.active_run()
    if not active or not is_main():
        return set()
    with signals_wait():
        history = mlflow.MlflowClient().get_metric_history(active.info.run_id, f"{prefix}train/loss")
    return {metric.step for metric in history}


@unless_muted
def log_epoch(result: EpochResult, prefix: str = "") -> None:
    """Log one epoch's metrics under `train/` and `validation/`, the epoch as step."""
    # The first metric of a run is the one that MLflow's compare view begins with: macro-F1, which comes last here.
    metrics = {f"validation/{name}": value for name, value in reversed(list(result.validation.items()))}
    metrics |= {f"train/{name}": value for name, value in result.train.items()}
    metrics |= {"train/learning_rate": result.learning_rate, "train/images_per_second": result.images_per_second}
    mlflow.log_metrics({f"{prefix}{name}": value for name, value in metrics.items()}, step=result.epoch)


@unless_muted
def log_metrics(metrics: Mapping[str, float], prefix: str, step: int | None = None) -> None:
    """Log values as `prefix/name`; the undefined ones (NaN) go into the tag `undefined_metrics` instead."""
    named = {f"{prefix}/{name}": value for name, value in metrics.items()}
    mlflow.log_metrics({name: value for name, value in named.items() if value == value}, step=step)
    if undefined := [name for name, value in named.items() if value != value]:
        mlflow.set_tag("undefined_metrics", ", ".join(undefined))


@unless_muted
def log_figure(figure: Figure, name: str) -> None:
    """Save a figure among the run's artifacts as figures/NAME.png."""
    mlflow.log_figure(figure, f"figures/{name}.png", save_kwargs={"dpi": 150})


@unless_muted
def log_parameters(values: Mapping[str, Any]) -> None:
    """Log further parameters of the active run."""
    mlflow.log_params(dict(values))


@unless_muted
def log_text(text: str, name: str) -> None:
    """Save a text among the run's artifacts."""
    mlflow.log_text(text, name)


@unless_muted
def log_table(table: pd.DataFrame, name: str) -> None:
    """Save a table among the run's artifacts as tables/NAME.csv."""
    mlflow.log_text(table.to_csv(index=False), f"tables/{name}.csv")


@unless_muted
def log_masks(image_ids: Sequence[str], masks: NDArray[np.bool_], name: str) -> None:
    """Save masks (n, height, width) among the run's artifacts as masks/NAME.npz: arrays `image_id` and `masks`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{name}.npz")
        np.savez_compressed(file, image_id=np.array(image_ids, dtype=str), masks=masks)
        mlflow.log_artifact(str(file), "masks")


@unless_muted
def log_report(content: Mapping[str, Any], name: str) -> None:
    """Save values among the run's artifacts as NAME.json."""
    mlflow.log_dict(dict(content), f"{name}.json")


@unless_muted
def log_dataset(prepared: Prepared, rows: Any, name: str, context: str) -> None:
    """Log which images a run used: `context` is training, validation or test."""
    samples = prepared.samples.iloc[rows][["image_id", "label"]].reset_index(drop=True)
    source = LocalArtifactDatasetSource("build/prepared/samples.csv")
    digest = f"{prepared.data_digest}-{prepared.split_digest}"
    # MLflow keeps one data set of each name and digest a run, so the context is part of the name.
    data = mlflow.data.from_pandas(samples, source=source, targets="label", name=f"{name}-{context}", digest=digest)
    mlflow.log_input(data, context=context)


@unless_muted
def log_file(file: Path) -> None:
    """Save a file among the run's artifacts, under its name."""
    mlflow.log_artifact(str(file))


@unless_muted
def log_folder(folder: Path, name: str) -> None:
    """Save what a folder holds among the run's artifacts, in NAME/."""
    mlflow.log_artifacts(str(folder), name)


@unless_muted
def tag(**tags: str) -> None:
    """Set tags of the active run."""
    mlflow.set_tags(tags)


def active_id() -> str:
    """The id of the active run; empty if there is none, or this process does not log."""
    active = mlflow.active_run()
    return str(active.info.run_id) if active and is_main() else ""


def tag_of_active(name: str) -> str | None:
    """A tag of the active run; None if it has no such tag, or this process does not log."""
    active = mlflow.active_run()
    if not active or not is_main():
        return None
    with signals_wait():
        tags: dict[str, str] = mlflow.get_run(active.info.run_id).data.tags
    return tags.get(name)


def _describe(run_id: str, verb: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    # `mlflow run -P` has logged its parameters as text; a second value of other spelling would be refused.
    known = mlflow.get_run(run_id).data
    mlflow.log_params({name: value for name, value in parameters.items() if name not in known.params})
    mlflow.set_tags({"verb": verb, "mlflow.note.content": NOTICE, **tags})
    if "failure" in known.tags:  # of a run that is continued
        mlflow.delete_tag("failure")


@contextmanager
def _told_end() -> Iterator[None]:
    """Say in the active run why it ended, if not well."""
    try:
        yield
    except KeyboardInterrupt as stop:
        mlflow.set_tag("failure", str(stop) or "stopped by Ctrl-C")
        mlflow.end_run("KILLED")
        raise
    except Exception as error:
        mlflow.set_tag("failure", f"{type(error).__name__}: {error}"[:500])
        raise


def _child_of(parent: Run, name: str) -> Run | None:
    found: list[Run] = mlflow.search_runs(
        [parent.info.experiment_id],
        filter_string=f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' AND attributes.run_name = '{name}'",
        output_format="list",
    )  # fmt: skip
    return found[0] if found else None


def _inherited(parent: Run) -> dict[str, str]:
    """Tags of a parent that are as true of its children; where its data and code come from."""
    kept = mlflow.get_run(parent.info.run_id).data.tags
    return {name: value for name, value in kept.items() if name in INHERITED}
