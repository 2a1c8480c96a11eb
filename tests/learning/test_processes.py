"""Two processes on one machine learn what one process learns from the same batches."""

import pandas as pd
import pytest

from tests.conftest import run_in, ultrasound
from tests.tracking.test_workflow import client, runs

# Batch normalisation, dropout, augmentation and mixing are all of the whole batch, the last of which is odd. Adam does
# not see the size of gradients, but for what the decay of weights adds to them.
OPTIONS = ("--train.epochs", "3", "--train.ema", "0.9", "--augment.mixup", "0.2", "--train.freeze", "1",
           "--train.batch_size", "15", "--train.learning_rate", "0.0005", "--train.test_flip", "true",
           "--train.weight_decay", "0.1")  # fmt: skip


def alone_and_together(project, verb, *options):
    """Runs of one process and of two."""
    before = len(runs(project, verb))
    ultrasound(project, verb, *options)
    launched = run_in(
        project, "accelerate", "launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision",
        "no", "--dynamo_backend", "no", "-m", "ultrasound", verb, *options,
    )  # fmt: skip
    assert launched.stdout.count("run ") == 1
    alone, together = runs(project, verb)[before:]
    assert together.info.status == "FINISHED"
    return alone, together


def test_two_processes_learn_outlines_and_classes_as_one(project):
    options = ("--train.epochs", "2", "--train.ema", "0.9", "--train.freeze", "1", "--train.batch_size", "15",
               "--train.classification_weight", "0.5", "--segment.width", "16")  # fmt: skip
    histories = [
        {metric: [point.value for point in client(project).get_metric_history(run.info.run_id, metric)]
         for metric in ("train/loss", "train/class_loss", "validation/loss", "validation/dice", "validation/macro_f1")}
        for run in alone_and_together(project, "segment", *options)
    ]  # fmt: skip
    assert all(len(values) == 2 for values in histories[0].values())
    for metric, values in histories[0].items():
        assert histories[1][metric] == pytest.approx(values, abs=1e-3), metric


def test_two_processes_give_the_losses_of_one_and_only_one_of_them_logs(project):
    alone, together = alone_and_together(project, "train", *OPTIONS)
    for metric in ("train/loss", "validation/loss"):
        one, two = (client(project).get_metric_history(run.info.run_id, metric) for run in (alone, together))
        assert len(one) == len(two) == 3
        for left, right in zip(one, two, strict=True):
            assert left.value == pytest.approx(right.value, abs=1e-4)
    tables = [
        pd.read_csv(client(project).download_artifacts(run.info.run_id, "tables/predictions_validation.csv"))
        for run in (alone, together)
    ]
    assert tables[0]["image_id"].tolist() == tables[1]["image_id"].tolist()
    assert (tables[0]["p_malignant"] - tables[1]["p_malignant"]).abs().max() < 1e-3
