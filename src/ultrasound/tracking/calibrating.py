"""A trained classifier is given what its answers need beside the networks; it is logged with its run.

That is its calibration, operating point and prediction sets, and which images are like those that it has learnt from.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ultrasound.errors import InputError
from ultrasound.images import splitting
from ultrasound.images.prepared import Prepared
from ultrasound.inference.calibration import Calibration
from ultrasound.learning.classifier import Classifier
from ultrasound.scoring import calibration, figures, metrics, resemblance
from ultrasound.scoring.metrics import Probabilities, Targets
from ultrasound.sections import Calibrate
from ultrasound.tracking import runs

BEFORE_AFTER = ("log_loss", "brier", "ece")


def calibrate(
    model: Classifier, targets: Targets, raw: Probabilities, settings: Calibrate, fitted_on: str, prepared: Prepared
) -> Classifier:
    """Fix how a classifier's probabilities become answers; logs the figures of it with the active run.

    Args:
        targets: (n,) class numbers of images that the networks had not learnt from.
        raw: (n, classes) their probabilities.
        fitted_on: which images those are, in words.
        prepared: whose development images are those that later ones must resemble.

    Raises:
        InputError: none of them is of the positive class, or all are; there are too few images.
    """
    is_positive = targets == model.labels.index(settings.positive)
    if not 0 < is_positive.sum() < len(targets):
        raise InputError(
            f"calibrate.positive={settings.positive}: {'all' if is_positive.any() else 'none'} of the {len(targets)} "
            f"images {fitted_on} are of that class, so that no operating point can be chosen"
        )
    temperature = calibration.temperature(raw, targets)
    unfinished = Calibration(temperature, settings.positive, 0.0, (), settings.sensitivity, settings.coverage,
                             len(targets), fitted_on)  # fmt: skip
    probabilities = unfinished.probabilities(raw)
    probability = probabilities[:, model.labels.index(settings.positive)]
    threshold = calibration.operating_point(probability, is_positive, settings.sensitivity)
    found = dataclasses.replace(
        unfinished,
        threshold=threshold,
        set_thresholds=calibration.set_thresholds(probabilities, targets, settings.coverage),
    )
    called = probability >= threshold
    values = {
        "temperature": temperature,
        "threshold": threshold,
        "sensitivity": float(np.mean(called[is_positive])),
        "specificity": float(np.mean(~called[~is_positive])),
        "mean_set_size": float(found.sets(probabilities).sum(axis=1).mean()),
    }
    for name in BEFORE_AFTER:
        of = metrics.METRICS[name].of
        values |= {f"{name}_before": of(targets, raw), f"{name}_after": of(targets, probabilities)}
    runs.log_metrics(values, "calibration")
    curves = {"before": calibration.reliability(raw, targets), "after": calibration.reliability(probabilities, targets)}
    runs.log_figure(figures.reliability(curves, f"{len(targets)} images {fitted_on}"), "reliability")
    runs.log_report(dataclasses.asdict(found), "calibration")
    rows = prepared.rows(splitting.DEVELOPMENT)
    groups = prepared.samples["group"].to_numpy(dtype=np.int64)[rows]
    familiarity = resemblance.fit(prepared.images[rows], groups)
    runs.log_report(dataclasses.asdict(familiarity), "familiarity")
    return dataclasses.replace(model, calibration=found, familiarity=familiarity)
