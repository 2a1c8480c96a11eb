"""What an evaluation leaves in its run: scores, figures, tables, heat maps, galleries, and one page of it all."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mlflow.entities import Run
from sklearn.metrics import precision_recall_curve, roc_curve

from ultrasound.images.prepared import Prepared
from ultrasound.learning import heat
from ultrasound.scoring import calibration, figures, gallery, metrics, report
from ultrasound.scoring.intervals import Interval
from ultrasound.scoring.report import Shown
from ultrasound.tracking import calibrating, models, runs
from ultrasound.tracking.provenance import DIGESTS
from ultrasound.tracking.testing import Tested

REPORT, PAGE = "evaluation", "report.html"
THRESHOLDS = np.linspace(0.01, 0.6, 60)  # of the decision curve
CURVES = ("learning_curves", "fold_curves")  # of the training run


def log(tested: Tested, content: Mapping[str, Any], trained: Run, shown: int) -> None:
    """Log all of an evaluation with the active run.

    Args:
        content: what `content` returns.
        trained: the run that trained the model.
        shown: images in each gallery.
    """
    ends = {f"{name}_{end}": getattr(score, end) for name, score in tested.scores.items() for end in ("low", "high")}
    known = {name: end for name, end in ends.items() if end == end}  # a score may have no interval
    runs.log_metrics({name: score.value for name, score in tested.scores.items()} | known, "test")
    runs.log_metrics(content["uncalibrated"], "test_uncalibrated")
    drawn = _figures(tested)
    for name, figure in drawn.items():
        runs.log_figure(figure, f"{name}_test")
    runs.log_table(_predictions(tested), "predictions_test")
    runs.log_table(tested.by_slice, "slices")
    runs.log_report(content, REPORT)
    if tested.explained:
        runs.log_metrics({f"map_similarity_{name}": score.value for name, score in tested.explained.similarity.items()},
                         "test")  # fmt: skip
        _log_maps(tested)
    runs.log_text(
        report.page(
            f"Evaluation of {trained.info.run_name}", facts(content, trained), content, tested.scores, tested.by_slice,
            {**drawn, **curves(trained)}, _galleries(tested, shown) if tested.explained else {},
        ),
        PAGE,
    )  # fmt: skip


def content(tested: Tested, model_uri: str, prepared: Prepared, trained: Run) -> dict[str, Any]:
    """What evaluation.json holds: scores, counts, calibration, and what names model and data.

    Args:
        trained: the run that trained the model.
    """
    answers, explained = tested.answers, tested.explained
    return {
        "model_uri": model_uri,
        "images": len(answers.targets),
        "groups": len(np.unique(answers.groups)),
        "labels": list(answers.labels),
        **compared(prepared, trained),
        "resamples": tested.resamples,
        "scores": in_json(tested.scores),
        "uncalibrated": {
            name: metrics.METRICS[name].of(answers.targets, tested.raw) for name in calibrating.BEFORE_AFTER
        },
        "confusion": tested.confusion.tolist(),
        "calibration": dataclasses.asdict(tested.calibration),
        "prevalence": float(answers.is_positive.mean()),
        "explanation": {
            "lesions": int((explained.agreement.area > 0).sum()),
            "without_heat": int((explained.maps.sum(axis=(1, 2)) == 0).sum()),
            "classes": [name.removeprefix("peak_in_lesion_") for name in tested.scores if name.startswith("peak_in")],
            "similarity": {name: list(score) for name, score in explained.similarity.items()},
        } if explained else None,
    }  # fmt: skip


def in_json(scores: Mapping[str, Interval]) -> dict[str, list[float | None]]:
    """Value, lower and upper end of every score; JSON has no NaN."""
    return {name: [None if end != end else end for end in score] for name, score in scores.items()}


def compared(prepared: Prepared, trained: Run) -> dict[str, dict[str, str]]:
    """Digests of the data and split that a model was trained on, and of those that it is evaluated on."""
    return {
        "trained_on": {key: trained.data.tags.get(key, "unknown") for key in DIGESTS},
        "evaluated_on": {"data_digest": prepared.data_digest, "split_digest": prepared.split_digest},
    }


def facts(content: Mapping[str, Any], trained: Run) -> dict[str, str]:
    """What names training, data and code on a page."""
    named = {"trained in run": trained.info.run_id, "data": content["evaluated_on"]["data_digest"],
             "split": content["evaluated_on"]["split_digest"]}  # fmt: skip
    return named | {"code": trained.data.tags.get("git_commit", "none")[:12]}


def _figures(tested: Tested) -> dict[str, Figure]:
    answers, title = tested.answers, f"locked test set, {len(tested.answers.targets)} images"
    single = [(label, answers.targets == number, answers.probabilities[:, number])
              for number, label in enumerate(answers.labels) if (answers.targets == number).any()]  # fmt: skip
    recalls = {label: precision_recall_curve(is_class, probability)[1::-1] for label, is_class, probability in single}
    positive = answers.labels[answers.positive]
    benefit = calibration.decision_curve(answers.probabilities[:, answers.positive], answers.is_positive, THRESHOLDS)
    return {
        "confusion": figures.confusion_matrix(tested.confusion, answers.labels, title),
        "roc": figures.roc(
            {label: roc_curve(is_class, probability)[:2] for label, is_class, probability in single},
            (1 - tested.scores["operating_specificity"].value, tested.scores["operating_sensitivity"].value), title,
        ),
        "precision_recall": figures.precision_recall(
            recalls, {label: float(is_class.mean()) for label, is_class, _ in single}, title
        ),
        "reliability": figures.reliability(
            {"before": calibration.reliability(tested.raw, answers.targets),
             "after": calibration.reliability(answers.probabilities, answers.targets)}, title,
        ),
        "decision_curve": figures.decision_curve(benefit, positive, title),
        "slices": figures.slices(tested.by_slice, title),
    }  # fmt: skip


def curves(trained: Run) -> dict[str, bytes]:
    """The learning curves that the training has left."""
    found = {}
    client = mlflow.MlflowClient()
    there = {file.path for file in client.list_artifacts(trained.info.run_id, "figures")}
    for name in CURVES:
        if f"figures/{name}.png" in there:
            path = mlflow.artifacts.download_artifacts(f"runs:/{trained.info.run_id}/figures/{name}.png")
            found[name] = Path(path).read_bytes()
    return found


def _predictions(tested: Tested) -> pd.DataFrame:
    answers = tested.answers
    table = models.predictions(tested.samples, answers.labels, answers.probabilities)
    names = np.array(answers.labels)
    table["called_positive"] = answers.called
    table["prediction_set"] = [" ".join(names[row]) for row in answers.sets]
    table["abstains"] = answers.abstains
    if tested.explained:
        table["peak_in_lesion"] = tested.explained.agreement.peak
        table["heat_in_lesion"] = tested.explained.agreement.heat
    return table


def _log_maps(tested: Tested) -> None:
    """Every heat map: as numbers in one file, and laid over its scan in a picture each."""
    assert tested.explained is not None
    larger = heat.enlarged(tested.explained.maps, tested.images.shape[1])
    with tempfile.TemporaryDirectory() as folder:
        ids = tested.samples["image_id"].tolist()
        np.savez_compressed(Path(folder, "heat_maps.npz"), image_id=np.array(ids), maps=tested.explained.maps)
        for image_id, image, mask, hot in zip(ids, tested.images, tested.masks, larger, strict=True):
            file = Path(folder, f"{image_id}.jpg")
            file.parent.mkdir(parents=True, exist_ok=True)
            gallery.picture(image, mask, hot).save(file, quality=report.QUALITY)
        runs.log_folder(Path(folder), "explanation")


def _galleries(tested: Tested, number: int) -> dict[str, list[Shown]]:
    assert tested.explained is not None
    maps, answers, names = tested.explained.maps, tested.answers, np.array(tested.answers.labels)
    ids = tested.samples["image_id"].tolist()

    def shown(row: int) -> Shown:
        hot = heat.enlarged(maps[row : row + 1], tested.images.shape[1])[0]
        return Shown(
            gallery.picture(tested.images[row], tested.masks[row], hot), ids[row], names[answers.targets[row]],
            names[answers.probabilities[row].argmax()],
            dict(zip(answers.labels, answers.probabilities[row].tolist(), strict=True)),
            names[answers.sets[row]].tolist(),
        )  # fmt: skip

    return {
        title: [shown(int(row)) for row in gallery.surest(answers, right, number)]
        for title, right in (("Surest errors", False), ("Surest hits", True))
    }
