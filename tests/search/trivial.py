"""`python -m tests.search.trivial TRIALS SECONDS [MACHINE]`: a worker of a study whose trials only sleep.

Everything but the training is real: the study and its lock, the tuning run and its children in MLflow. Prints a line
when it begins, and one for each trial. With a name of a machine it takes itself for a process of that one.
"""

import sys
import time
from types import SimpleNamespace

import optuna

from tests.forked import PROJECT
from ultrasound import params
from ultrasound.errors import raise_on_signals
from ultrasound.search import session, study, trials, workers
from ultrasound.tracking import heartbeat, runs

DATA = SimpleNamespace(data_digest="d", split_digest="s")


def main() -> None:
    """Work until the study holds its trials."""
    count, seconds = int(sys.argv[1]), float(sys.argv[2])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    chosen = params.load({"tune.trials": count, "tune.heartbeat": 1, "tune.workers": 2}, PROJECT / "params.yaml")
    raise_on_signals()
    if len(sys.argv) > 3:
        heartbeat._machine = lambda: sys.argv[3]
    with session.opened(chosen, DATA, {}, {}) as search:
        print("holder" if search.is_holder else "worker", search.parent_id, flush=True)
        parent_id = None if search.is_holder else search.parent_id

        def objective(trial: optuna.Trial) -> float:
            with runs.child("trial", trials.name(trial.number), {}, {"trial": str(trial.number)}, parent_id) as run_id:
                trial.set_user_attr(study.RUN, run_id)
                print("trial", trial.number, flush=True)
                x = trial.suggest_float("x", 0, 1)
                time.sleep(seconds)
                runs.log_metrics({"x": x}, "trivial")
            return x

        workers.work(search.study, study.storage_address(chosen.tune), count, float("inf"), objective)


if __name__ == "__main__":
    main()
