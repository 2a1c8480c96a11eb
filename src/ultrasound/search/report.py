"""What a search leaves in the tuning run: trials, best parameters, Optuna's figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.axes
import numpy as np
import optuna
import pandas as pd
import yaml
from matplotlib.figure import Figure
from optuna import visualization
from optuna.trial import FrozenTrial, TrialState

from ultrasound.search import study, trials
from ultrasound.tracking import runs
from ultrasound.tracking.segmentation import SEGMENTATION

# Name -> (interactive, picture); each needs so many complete trials.
FIGURES: dict[str, tuple[Callable[..., Any], Callable[..., Any], int]] = {
    "history": (visualization.plot_optimization_history, visualization.matplotlib.plot_optimization_history, 1),
    "importances": (visualization.plot_param_importances, visualization.matplotlib.plot_param_importances, 4),
    "parallel_coordinates": (
        visualization.plot_parallel_coordinate, visualization.matplotlib.plot_parallel_coordinate, 2,
    ),
    "slices": (visualization.plot_slice, visualization.matplotlib.plot_slice, 2),
    "intermediate_values": (
        visualization.plot_intermediate_values, visualization.matplotlib.plot_intermediate_values, 1,
    ),
}  # fmt: skip

PAGE = '<!doctype html><html lang="en"><meta charset="utf-8"><title>{study}</title><body>{figures}</body></html>'


def table(opened: optuna.Study) -> pd.DataFrame:
    """One row a trial: number, state, value, why it ended, where its parameters come from, seconds, parameters."""
    return pd.DataFrame([_row(trial) for trial in opened.get_trials(deepcopy=False)])


def fragment(opened: optuna.Study) -> str:
    """The best parameters, to be pasted into params.yaml; of outlines as part of their recipe."""
    of_outlines = opened.user_attrs["shared"]["tune.metric"] in SEGMENTATION.search.metrics
    sections: dict[str, dict[str, Any]] = {}
    for key, value in study.best(opened).params.items():
        section, _, name = key.partition(".")
        if of_outlines and section != "segment":
            sections.setdefault("segment", {}).setdefault("recipe", {})[key] = value
        else:
            sections.setdefault(section, {})[name] = value
    return yaml.safe_dump(sections, sort_keys=False)


def log(opened: optuna.Study) -> None:
    """Log the search with the active run, which is the tuning run."""
    best = study.best(opened)
    runs.log_metrics({opened.user_attrs["shared"]["tune.metric"]: best.value or 0.0, "trial": best.number}, "best")
    runs.tag(best_trial=trials.name(best.number))
    runs.log_text(fragment(opened), "best_params.yaml")
    runs.log_table(table(opened), "trials")
    left_out: list[str] = []
    page: list[str] = []
    complete = len(study.trials(opened, TrialState.COMPLETE))
    for name, (interactive, picture, needed) in FIGURES.items():
        if complete < needed:
            left_out.append(f"{name} needs {needed} complete trials")
            continue
        # The first brings plotly along, so that the page opens where there is no network.
        page.append(interactive(opened).to_html(full_html=False, include_plotlyjs=not page))
        runs.log_figure(_figure(picture(opened)), name)
    runs.log_text(PAGE.format(study=opened.study_name, figures="\n".join(page)), "figures/search.html")
    if left_out:
        runs.tag(figures_left_out="; ".join(left_out))


def log_best(opened: optuna.Study) -> None:
    """Log the best parameters with the tuning run, as the last thing: MLflow's parameters cannot change any more."""
    runs.log_parameters({f"best.{key}": value for key, value in study.best(opened).params.items()})


def _row(trial: FrozenTrial) -> dict[str, Any]:
    attributes = trial.user_attrs
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "steps": trial.last_step,
        "seconds": trial.duration.total_seconds() if trial.duration else None,
        "origin": attributes.get(study.ORIGIN, "sampler"),
        "failure": attributes.get(study.FAILURE, ""),
        "run_id": attributes.get(study.RUN, ""),
        **trial.params,
    }


def _figure(axes: matplotlib.axes.Axes | np.ndarray[Any, Any]) -> Figure:
    found = np.atleast_1d(np.asarray(axes)).flat[0].figure
    assert isinstance(found, Figure)
    return found
