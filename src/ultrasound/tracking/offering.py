"""From a run with a model to a version in the registry: evaluated on the locked test set, offered as champion."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from ultrasound.errors import signals_wait
from ultrasound.images.prepared import Prepared
from ultrasound.tracking import models, provenance, registry, runs, store
from ultrasound.tracking.models import Evaluation
from ultrasound.tracking.registry import Verdict


class Offered(NamedTuple):
    """What became of a run's model.

    Attributes:
        version: of the registered model.
        evaluation: of the version on the locked test set.
        verdict: whether it is champion, and why.
    """

    version: ModelVersion
    evaluation: Evaluation
    verdict: Verdict


def offer(found: Run, name: str, data: Prepared, catalog: pd.DataFrame) -> Offered:
    """Make a version of `name` from a run's model; it becomes champion if it is better than the one that stands.

    Models that were scored on the same test set before are not scored again; others in a child of the active run.
    """
    tags = provenance.tags(data)

    def evaluation(model_uri: str, title: str) -> Evaluation:
        known = models.evaluated(model_uri, data)
        if known is not None:
            return known
        with runs.child("evaluate", f"evaluate-{title}", {}, tags):
            return models.evaluate(model_uri, data, catalog)

    scored = evaluation(found.data.tags[store.MODEL_TAG], str(found.info.run_name))
    carried = {key: found.data.tags[key] for key in (*tags, "seed")}
    with signals_wait():
        version = registry.version_of(found, name, {**carried, "evaluation_run": scored.run_id})
        champion = registry.champion(name)
    standing = None
    if champion and registry.is_comparable(champion, tags):
        standing = evaluation(registry.model_uri(champion), f"{name}-{champion.version}").metrics
    with signals_wait():
        verdict = registry.promote(version, scored.metrics, champion, standing)
    runs.tag(registered_version=f"{name}/{version.version}", verdict=verdict.reason)
    return Offered(version, scored, verdict)
