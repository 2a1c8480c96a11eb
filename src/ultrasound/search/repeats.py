"""What the search has gained: its best parameters and those of params.yaml, trained anew with other seeds.

The best of many trials is half luck: it was chosen by the very score that it shows. Seeds that had no part in the
choice tell how much is left of it. The images did have a part in it, so that the gain is still the more hopeful side
of the truth; only the locked test set had none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna

from ultrasound.images.prepared import Prepared
from ultrasound.params import override
from ultrasound.scoring.intervals import Interval
from ultrasound.search import space, study
from ultrasound.sections import Params
from ultrasound.tracking import folds, runs
from ultrasound.tracking.task import parameters


class Repeat(NamedTuple):
    """Parameters trained on every fold with a seed that had no part in their choice.

    Attributes:
        seed: of the training.
        run_id: its run.
        crossed: what came of it, as `Task.pool` returned it.
    """

    seed: int
    run_id: str
    crossed: Any


class Repeats(NamedTuple):
    """The best parameters and those of params.yaml, with the same seeds.

    Attributes:
        best: a training a seed; the first has the model.
        defaults: of the values in params.yaml; none where they are the best.
        gain: metric -> how much higher the best score than the defaults, means over the seeds; empty likewise.
    """

    best: list[Repeat]
    defaults: list[Repeat]
    gain: dict[str, Interval]


def train(found: optuna.Study, params: Params, data: Prepared, tags: Mapping[str, str], state: Path) -> Repeats:
    """Train each with `tune.repeats` seeds on `tune.folds`, in children of the active run; log there what was gained.

    Args:
        tags: of the children.
        state: folder of the run's checkpoints.
    """
    chosen, task = study.best(found), space.task(params)
    seeds = [params.train.seed + 1 + number for number in range(params.tune.repeats)]

    def trained(verb: str, values: Mapping[str, Any], seed: int, with_model: bool) -> Repeat:
        changed = override(
            params,
            {**values, "train.folds": params.tune.folds, "train.refit": with_model, "train.seed": seed,
             "train.ensemble": False},
        )  # fmt: skip
        name = f"{verb}-seed-{seed}"
        shown = parameters(task, changed)
        with runs.child(verb.partition("-")[0], name, shown, {**tags, "seed": str(seed)}) as run_id:
            crossed = folds.cross_validate(changed, data, state / name, with_models=False, task=task)
            return Repeat(seed, run_id, crossed)

    best = [trained(f"best-{chosen.number:03d}", chosen.params, seed, seed == seeds[0]) for seed in seeds]
    _log_spread("best", best, task.search.shown)
    if not best or chosen.params == space.defaults(params):
        return Repeats(best, [], {})
    defaults = [trained("defaults", {}, seed, False) for seed in seeds]
    _log_spread("defaults", defaults, task.search.shown)
    before, after = ([repeat.crossed for repeat in repeats] for repeats in (defaults, best))
    gain = task.search.gain(before, after, data)
    for metric, (value, low, high) in gain.items():
        runs.log_metrics({metric: value, f"{metric}_low": low, f"{metric}_high": high}, "gain")
    return Repeats(best, defaults, gain)


def _log_spread(verb: str, repeats: list[Repeat], metrics: tuple[str, ...]) -> None:
    """Log mean and standard deviation over all folds of all seeds, and the out-of-fold score of every seed."""
    for metric in metrics if repeats else ():
        over = [values[metric] for repeat in repeats for values in repeat.crossed.values.values()]
        deviation = float(np.std(over, ddof=1)) if len(over) > 1 else np.nan
        runs.log_metrics({f"{metric}_mean": float(np.mean(over)), f"{metric}_sd": deviation}, f"repeats_{verb}")
    for repeat in repeats:
        runs.log_metrics({metrics[0]: repeat.crossed.intervals[metrics[0]].value}, f"repeats_{verb}", step=repeat.seed)
