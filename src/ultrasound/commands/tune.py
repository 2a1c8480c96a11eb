"""Search hyper-parameters with Optuna: one child run a trial, pruned by epoch, the best trial's model kept.

Run as `mlflow run . -e tune --env-manager local -P tune.trials=4`, or alone: `python -m ultrasound tune`. Trials are
compared by macro-F1 on the first of the folds `train.folds`; `tune.space` in params.yaml says what is searched. The
same command again continues the study `tune.study`.
"""

import warnings

import matplotlib.figure
import optuna
import yaml
from optuna.trial import TrialState

from ultrasound.commands import PREPARED, REPORT
from ultrasound.errors import InputError
from ultrasound.images import prepared
from ultrasound.images.prepared import Prepared
from ultrasound.learning import search_space
from ultrasound.learning.divergence import DivergedError
from ultrasound.learning.loop import EpochResult
from ultrasound.params import flatten
from ultrasound.sections import Params
from ultrasound.tracking import provenance, runs, training

SECTIONS = ("tune", "model", "augment", "train")
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)  # a failed trial counts, or a bad space never ends


def run(params: Params) -> None:
    """Open or continue the study, run its trials under one parent run; print the trials and the best parameters."""
    provenance.require_current(params)
    search_space.check(params)
    data = prepared.read(PREPARED)
    report = provenance.require_report(REPORT, data)
    tags = {**provenance.tags(data), "seed": str(params.train.seed)}
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the table at the end says the same
    study = _study(params, data)
    with runs.run(
        "tune", f"tune-{params.model.name}", flatten(params, ("data", "split", "preprocess", *SECTIONS)), tags
    ):
        runs.log_file(report)
        if len(study.get_trials(states=ENDED)) < params.tune.trials:
            study.optimize(
                lambda trial: _trial(trial, params, data, tags),
                callbacks=[optuna.study.MaxTrialsCallback(params.tune.trials, states=ENDED)],
                catch=(DivergedError,),
            )
        else:
            print(f"study {study.study_name} holds its {params.tune.trials} trials already")
        _log_study(study)
    best = _best(study)
    table = study.trials_dataframe(attrs=("number", "state", "value", "params"))
    print(table.rename(columns=lambda name: name.removeprefix("params_")).to_string(index=False))
    print(f"best: trial {best.number}, validation macro-F1 {best.value:.3f}, {best.params}")


def _study(params: Params, data: Prepared) -> optuna.Study:
    settings = params.tune
    study = optuna.create_study(
        study_name=settings.study,
        storage=settings.storage,
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=settings.startup_trials),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=settings.startup_trials),
    )
    shared = {"data_digest": data.data_digest, "split_digest": data.split_digest, **search_space.fixed_values(params)}
    known = study.user_attrs.get("shared", shared)
    if known != shared:
        changed = ", ".join(sorted(key for key in {*known, *shared} if known.get(key) != shared.get(key)))
        raise InputError(f"study {settings.study} was begun with other values of {changed}: choose a new tune.study")
    study.set_user_attr("shared", shared)
    return study


def _trial(trial: optuna.Trial, params: Params, data: Prepared, tags: dict[str, str]) -> float:
    chosen = search_space.suggest(trial, params)

    def report(result: EpochResult) -> None:
        trial.report(result.validation["macro_f1"], result.epoch)
        if trial.should_prune():
            raise optuna.TrialPruned(f"below the median of the trials before at epoch {result.epoch}")

    name = f"trial-{trial.number:03d}"
    pruned = None
    with runs.child(
        "trial", name, flatten(chosen, ("model", "augment", "train")), {**tags, "trial": str(trial.number)}
    ):
        try:
            trained = training.train(chosen, data, name, params.folds[0], on_epoch=report)
        except optuna.TrialPruned as reason:
            pruned = reason  # raised again below: a pruned trial is a finished run, not a failed one
            runs.tag(trial_state="pruned", trial_reason=str(reason))
        else:
            score = trained.chosen.validation["macro_f1"]
            before = trial.study.get_trials(states=(TrialState.COMPLETE,))
            training.log(trained, data, with_model=all(score > other.value for other in before))
            runs.tag(trial_state="complete")
    if pruned:
        raise pruned
    return score


def _best(study: optuna.Study) -> optuna.trial.FrozenTrial:
    # The first of equals: it is the one whose model was kept.
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    if not complete:
        raise InputError("no trial came to an end: every one was pruned or failed, see the child runs")
    return max(complete, key=lambda trial: (trial.value, -trial.number))


def _log_study(study: optuna.Study) -> None:
    best = _best(study)
    runs.log_metrics({"macro_f1": best.value, "trial": best.number}, "best")
    runs.tag(best_trial=f"trial-{best.number:03d}")
    runs.log_parameters({f"best.{key}": value for key, value in best.params.items()})
    sections: dict[str, dict[str, object]] = {}
    for key, value in best.params.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    runs.log_text(yaml.safe_dump(sections, sort_keys=False), "best_params.yaml")
    runs.log_table(study.trials_dataframe(), "trials")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        history = optuna.visualization.matplotlib.plot_optimization_history(study).figure
    assert isinstance(history, matplotlib.figure.Figure)
    runs.log_figure(history, "optimization_history")
