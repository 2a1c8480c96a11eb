"""Search hyper-parameters with Optuna: one child run a trial, poor ones stopped early, the best trained again.

Run as `mlflow run . -e tune --env-manager local -P tune.trials=4`, or alone: `python -m ultrasound tune`. Trials are
compared by `tune.metric` out of fold; `tune.space` in params.yaml says what is searched, and the first trial is
params.yaml as it stands. The same command again continues the study `tune.study`, or joins it where it is running.
At the end the best parameters, and those of params.yaml, are trained with other seeds, which tells what was gained;
the model of the best is registered and offered as champion. With `tune.metric` dice or lesion_dice, trials are
trainings of `segment`, `segment.recipe` and its `segment.width` included.
"""

import shutil
from typing import Any

import optuna

from ultrasound.commands import CATALOG, CHECKPOINTS, PREPARED, REPORT
from ultrasound.images import catalog, prepared
from ultrasound.params import flatten
from ultrasound.search import repeats, report, session, space, study
from ultrasound.search.repeats import Repeats
from ultrasound.sections import UNUSED, Params
from ultrasound.tracking import offering, outline_offering, provenance, runs, store
from ultrasound.tracking.segmentation import SEGMENTATION
from ultrasound.tracking.task import meaningful

SECTIONS = ("tune", "model", "augment", "train", "segment", "calibrate")


def with_recipe(values: Any) -> bool:
    """Where outlines are searched for."""
    return isinstance(tune := values.get("tune"), dict) and str(tune.get("metric")) in SEGMENTATION.search.metrics


def unused(params: Params) -> tuple[str, ...]:
    """Parameters that mean nothing to the training of what is searched for."""
    return UNUSED["segmentation" if space.task(params) is SEGMENTATION else "classification"]


def run(params: Params) -> None:
    """Open, continue or join the study; run trials; bring the search to its end; print the trials and the best."""
    provenance.require_current(params)
    space.check(params)
    data = prepared.read(PREPARED)
    page = provenance.require_report(REPORT, data)
    tags = {**provenance.tags(data), "seed": str(params.train.seed)}
    task = space.task(params)
    values = meaningful(task, flatten(params, ("data", "split", "preprocess", *SECTIONS)))
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the bar and the table say the same
    repeated = Repeats([], [], {})
    offered = None
    with session.opened(params, data, tags, values) as search:
        state = CHECKPOINTS / search.parent_id
        if search.is_over:
            print(
                f"study {params.tune.study} holds its {params.tune.trials} trials already, see run {search.parent_id}"
            )
        else:
            session.work(search, params, PREPARED, tags, state)
        if search.is_holder:
            runs.log_file(page)
            report.log(search.study)
            repeated = repeats.train(search.study, params, data, tags, state)
            if repeated.best and params.tune.offer:
                found = store.get(repeated.best[0].run_id)
                offer = outline_offering.offer if task is SEGMENTATION else offering.offer
                offered = offer(found, params, data, catalog.read(CATALOG))
            report.log_best(search.study)
            shutil.rmtree(state, ignore_errors=True)  # nothing is left to continue
    table = report.table(search.study).drop(columns=["origin", "run_id", "steps"])
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep=""))
    best = study.best(search.study)
    print(f"best: trial {best.number}, {params.tune.metric} {best.value:.3f}; as a piece of params.yaml:")
    print(report.fragment(search.study))
    for name, found in (("best", repeated.best), ("params.yaml", repeated.defaults)):
        for repeat in found:
            metric = task.search.shown[0]
            value, low, high = repeat.crossed.intervals[metric]
            print(f"{name} with seed {repeat.seed}: {metric} out of fold {value:.3f} ({low:.3f} to {high:.3f})")
    for metric, (value, low, high) in repeated.gain.items():
        print(f"gain over params.yaml: {metric} {value:+.3f} ({low:+.3f} to {high:+.3f})")
    if repeated.best and not repeated.gain:
        print("nothing better than params.yaml was found")
    if offered:
        print(f"{offered.version.name} version {offered.version.version}: {offered.verdict.reason}")
    print(f"run {search.parent_id}" + ("" if search.is_holder or search.is_over else ", held by another process"))
