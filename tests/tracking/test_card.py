"""What a model card says of how its model came to be."""

import pytest
from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunStatus

from ultrasound.tracking import card


def trained(folds, refit, ensemble, *metrics):
    params = {"train.folds": folds, "train.refit": refit, "train.ensemble": ensemble}
    info = RunInfo("r", "0", "me", RunStatus.FINISHED, 0, 1, "active")
    data = RunData([Metric(name, 0.5, 0, 0) for name in metrics], [Param(*pair) for pair in params.items()], [])
    return Run(info, data)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (trained("3", "True", "False", "best/dice"), "one network, trained on all folds but 3"),
        (trained("[3]", "True", "False", "best/dice"), "one network, trained on all folds but 3"),
        (trained("all", "True", "False", "out_of_fold/dice"), "one network, trained on all development images"),
        # The best of a search over one fold is trained again on all images.
        (trained("0", "True", "False", "out_of_fold/dice"), "one network, trained on all development images"),
        (trained("all", "True", "True", "out_of_fold/dice"), "the mean of the networks of the folds"),
    ],
)
def test_it_names_the_images_that_the_network_has_learnt_from(run, said):
    assert card._members(run) == said
