"""A logged classifier is scored on the locked test set: once for each model, data and split, all of it in one run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Run
from numpy.typing import NDArray

from ultrasound.images import splitting
from ultrasound.images.prepared import Prepared
from ultrasound.scoring.intervals import Interval
from ultrasound.sections import Params
from ultrasound.tracking import card, models, reporting, runs, store, testing

CARD = "model_card.md"


class Evaluation(NamedTuple):
    """Scores of one model on the locked test set.

    Attributes:
        scores: name -> score with its 95 % interval.
        confusion: (classes, classes) counts, true classes in rows.
        labels: class names.
        run_id: the run that holds them.
    """

    scores: dict[str, Interval]
    confusion: NDArray[np.int64]
    labels: tuple[str, ...]
    run_id: str

    @property
    def metrics(self) -> dict[str, float]:
        """Name -> score."""
        return {name: score.value for name, score in self.scores.items()}


def evaluate(model_uri: str, prepared: Prepared, catalog: pd.DataFrame, params: Params, trained: Run) -> Evaluation:
    """Score a model on the locked test set and log all of it, and its model card, with the active run.

    Args:
        catalog: of all images, with their annotations.
        trained: the run that trained it, whose learning curves are shown.

    Raises:
        InputError: as `testing.test`.
    """
    rows = prepared.rows(splitting.TEST)
    runs.log_dataset(prepared, rows, "locked", "test")
    tested = testing.test(models.load(model_uri), prepared, rows, catalog, params.evaluate)
    content = reporting.content(tested, model_uri, prepared, trained)
    reporting.log(tested, content, trained, params.evaluate.gallery)
    name, source = params.register_.name, params.data.source
    runs.log_text(card.render(name, source, prepared, trained, content, tested.scores, tested.by_slice), CARD)
    runs.tag(evaluated_model=model_uri)
    return Evaluation(tested.scores, tested.confusion, tested.answers.labels, runs.active_id())


def known(model_uri: str, prepared: Prepared) -> Evaluation | None:
    """The evaluation of a model on the same data and split from an earlier run, if there is one."""
    run_id = store.evaluation_of(model_uri, prepared.data_digest, prepared.split_digest)
    if run_id is None:
        return None
    content = mlflow.artifacts.load_dict(f"runs:/{run_id}/{reporting.REPORT}.json")
    if "scores" not in content:
        return None  # of an older version of this project
    scores = {
        name: Interval(*(math.nan if end is None else end for end in ends)) for name, ends in content["scores"].items()
    }
    return Evaluation(scores, np.array(content["confusion"]), tuple(content["labels"]), run_id)


def predictions(run_id: str) -> pd.DataFrame:
    """The table of test predictions of an evaluation's run: a row an image."""
    return pd.read_csv(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/tables/predictions_test.csv"))


def card_of(run_id: str) -> Path:
    """The model card that an evaluation's run holds, as a file of this machine."""
    return Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{CARD}"))
