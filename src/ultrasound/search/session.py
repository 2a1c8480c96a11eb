"""One `tune` command: who holds the tuning run, and the workers of this machine.

The first command of a study starts the tuning run and holds it. Commands that come while it is held, from this machine
or another, join as workers; one that comes when the holder is gone takes the run over and brings it to its end.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from ultrasound.errors import raise_on_signals, signals_wait
from ultrasound.images import prepared
from ultrasound.images.prepared import Prepared
from ultrasound.search import space, study, trials, workers
from ultrasound.sections import Params
from ultrasound.tracking import mutex, resume, runs


class Search(NamedTuple):
    """A study that this process works on.

    Attributes:
        study: the study.
        parent_id: the tuning run.
        is_holder: whether this process holds that run, and so brings the search to its end.
        is_over: nothing is left to do.
    """

    study: optuna.Study
    parent_id: str
    is_holder: bool
    is_over: bool


@contextmanager
def opened(params: Params, data: Prepared, tags: Mapping[str, str], values: Mapping[str, Any]) -> Iterator[Search]:
    """Open the study; start its tuning run, take it over, or join the process that holds it.

    Args:
        tags: of the run.
        values: parameters that are logged with it.
    """
    address = study.storage_address(params.tune)
    shared = {"data_digest": data.data_digest, "split_digest": data.split_digest, **space.fixed_values(params)}
    with contextlib.ExitStack() as held:
        with mutex.held(address):  # until the study knows its run
            with signals_wait():
                found = study.open_study(params, shared)
                parent = str(found.user_attrs.get(study.PARENT, ""))
                status = resume.status(parent) if parent else None
                is_done = len(study.finished(found)) >= params.tune.trials
            is_holder = not (status == resume.HELD or (is_done and status == "FINISHED"))
            if is_holder:
                name = f"tune-{params.model.name}"
                earlier = parent if status == "FINISHED" else ""  # more trials were asked for since it ended
                continued = parent if status and not earlier else None
                parent = held.enter_context(runs.run("tune", name, values, tags, continued=continued))
                if earlier:
                    runs.tag(continues=earlier)
                with signals_wait():
                    found.set_user_attr(study.PARENT, parent)
            else:
                resume.point_to(parent, os.environ.pop("MLFLOW_RUN_ID", None))
        yield Search(found, parent, is_holder, is_done and not is_holder)


def work(search: Search, params: Params, folder: Path, tags: Mapping[str, str], state: Path) -> None:
    """Run trials until the study holds its number, with `tune.workers` processes; shows how far it is.

    Args:
        folder: of the prepared data.
        tags: of the trials' runs.
        state: folder of the search's checkpoints.
    """
    minutes = params.tune.timeout
    deadline = time.time() + minutes * 60 if minutes else float("inf")
    context = multiprocessing.get_context("spawn")
    parent_id = None if search.is_holder else search.parent_id
    others = [
        context.Process(target=_other, args=(number, params, folder, dict(tags), search.parent_id, state, deadline))
        for number in range(1, params.tune.workers)
    ]
    started: list[SpawnProcess] = []
    try:
        for process in others:
            with signals_wait():
                process.start()
                started.append(process)
        done = len(study.finished(search.study))
        with tqdm(total=params.tune.trials, initial=done, desc=params.tune.study, unit="trial", disable=None) as bar:

            def show(found: optuna.Study) -> None:
                nonlocal done
                before, done = done, len(study.finished(found))
                bar.set_postfix_str(progress(found))
                bar.update(done - before)
                if bar.disable and done > before:  # no terminal: a line a change, for a file
                    print(f"{params.tune.study}: {done} of {params.tune.trials} trials, {progress(found)}", flush=True)

            bar.set_postfix_str(progress(search.study))
            _trials(0, search.study, params, prepared.read(folder), tags, parent_id, state, deadline, show)
    except BaseException:
        for process in started:
            process.terminate()  # each closes its run and puts its trial in line again
        raise
    finally:
        for process in started:
            process.join()


def _trials(
    number: int, found: optuna.Study, params: Params, data: Prepared, tags: Mapping[str, str], parent_id: str | None,
    state: Path, deadline: float, show: Callable[[optuna.Study], object] = lambda found: None,
) -> None:  # fmt: skip
    """Be a worker, the one of this number on this machine."""
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    elif params.tune.workers > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // params.tune.workers))
    workers.work(
        found, study.storage_address(params.tune), params.tune.trials, deadline,
        lambda trial: trials.run(trial, params, data, tags, parent_id, state), show,
    )  # fmt: skip


def _other(
    number: int, params: Params, folder: Path, tags: dict[str, str], parent_id: str, state: Path, deadline: float
) -> None:  # a process of its own
    raise_on_signals()
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with contextlib.suppress(KeyboardInterrupt):
        with mutex.held(study.storage_address(params.tune)), signals_wait():
            shared = study.open_study(params, None)
        _trials(number, shared, params, prepared.read(folder), tags, parent_id, state, deadline)


def _end_with(parent: BaseProcess | None) -> None:
    """Stop this process when the command that it works for has been killed."""
    if parent:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def progress(found: optuna.Study) -> str:
    """How far a study is, in words."""
    counts = {state: len(study.trials(found, state)) for state in (TrialState.COMPLETE, TrialState.PRUNED)}
    failed = len(study.finished(found)) - sum(counts.values())
    words = f"{counts[TrialState.COMPLETE]} complete, {counts[TrialState.PRUNED]} pruned, {failed} failed"
    best: FrozenTrial | None = study.best(found) if counts[TrialState.COMPLETE] else None
    return words + (f", best {best.value:.3f}" if best and best.value is not None else "")
