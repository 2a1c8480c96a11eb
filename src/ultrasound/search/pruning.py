"""When a trial is given up: by its epochs in the first fold, by its folds after that.

Steps of a trial's intermediate values count epochs over all folds: those of the first fold one by one, then the score
of each fold at the step where it ends. Sources: successive halving and Hyperband (Li et al., JMLR 18, 2018); the median
rule (Golovin et al., Google Vizier, KDD 2017); a signed-rank test of the folds against those of the best trial
(Wilcoxon, Biometrics Bulletin 1, 1945; Optuna's WilcoxonPruner).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.trial import FrozenTrial, create_trial

from ultrasound.sections import Params


def fold_end(params: Params, number: int) -> int:
    """The step at which the fold of this number, counted from 0, ends."""
    allowed = params.tune.space.get("train.epochs")
    possible = [] if allowed is None else allowed.choices or [allowed.high]
    return (number + 1) * int(max([params.train.epochs, *possible]))  # its own where a condition leaves it out


class FoldsAndEpochs(BasePruner):
    """Optuna's pruner of epochs for the first fold, its Wilcoxon pruner for the others.

    Args:
        params: `tune.prune_epochs`, `tune.prune_folds` and the length of a fold.
    """

    def __init__(self, params: Params) -> None:
        settings = params.tune
        self.length = fold_end(params, 0)
        kinds: dict[str, Any] = {
            "median": lambda: MedianPruner(n_startup_trials=settings.startup_trials, n_min_trials=2),
            "hyperband": lambda: HyperbandPruner(min_resource=1, max_resource=self.length),
            "none": NopPruner,
        }
        self.epochs: BasePruner = kinds[settings.prune_epochs]()
        self.folds = WilcoxonPruner(p_threshold=settings.prune_folds) if settings.prune_folds else NopPruner()

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to give the trial up after what it reported last."""
        step = trial.last_step
        if step is None:
            return False
        if step < self.length:
            return self.epochs.prune(study, trial)
        try:
            best = study.best_trial
        except ValueError:
            return False  # nothing to compare with
        compared = SimpleNamespace(direction=study.direction, best_trial=self._of_folds(best))
        return self.folds.prune(compared, self._of_folds(trial))  # type: ignore[arg-type]

    def _of_folds(self, trial: FrozenTrial) -> FrozenTrial:
        scores = {step: value for step, value in trial.intermediate_values.items() if step % self.length == 0}
        return create_trial(value=0.0, intermediate_values=scores)
