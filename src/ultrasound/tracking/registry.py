"""The model registry: versions of one registered model, and which of them is champion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from ultrasound import NOTICE
from ultrasound.tracking.provenance import DIGESTS
from ultrasound.tracking.store import MODEL_TAG

CHAMPION = "champion"


class Verdict(NamedTuple):
    """What became of a version.

    Attributes:
        promoted: it is champion now.
        reason: one sentence, also in the version's description.
    """

    promoted: bool
    reason: str


def model_uri(version: ModelVersion) -> str:
    """The logged model behind a version: what evaluations are kept under."""
    return version.tags.get(MODEL_TAG) or f"models:/{version.name}/{version.version}"


def version_of(run: Run, name: str, tags: Mapping[str, str]) -> ModelVersion:
    """Make a version of `name` from a run's model, or return the one that was made from it before."""
    uri = run.data.tags[MODEL_TAG]
    for version in mlflow.MlflowClient().search_model_versions(f"name = '{name}'"):
        if model_uri(version) == uri:
            return version
    return mlflow.register_model(uri, name, tags={MODEL_TAG: uri, "run_id": run.info.run_id, **tags})


def champion(name: str) -> ModelVersion | None:
    """The version that serves now, if there is one."""
    try:
        return mlflow.MlflowClient().get_model_version_by_alias(name, CHAMPION)
    except mlflow.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model; no such alias
            return None
        raise


def is_comparable(version: ModelVersion, tags: Mapping[str, str]) -> bool:
    """Whether a version was trained on today's data and split, so that today's test set is unseen by it."""
    return all(version.tags.get(key) == tags[key] for key in DIGESTS)


def promote(
    version: ModelVersion,
    metrics: Mapping[str, float],
    champion: ModelVersion | None,
    standing: Mapping[str, float] | None,
) -> Verdict:
    """Make `version` champion if none stands, or if its macro-F1 on the same test set is higher.

    Args:
        metrics: the version's test metrics.
        champion: the version that holds the alias now, if there is one.
        standing: its metrics on the same test set; None where it may have been trained on images of that set.
    """
    new = f"macro-F1 on the test set {metrics['macro_f1']:.3f}"
    if champion is None:
        verdict = Verdict(True, f"Champion, as the first version: {new}.")
    elif champion.version == version.version:
        verdict = Verdict(True, f"Champion, and was it before: {new}.")
    elif standing is None:
        verdict = Verdict(
            False,
            f"Not champion: {new}, but version {champion.version} was trained on other data or another split, so no "
            "test set is unseen by both. To replace it, move the alias by hand in the MLflow UI.",
        )
    elif metrics["macro_f1"] > standing["macro_f1"]:
        verdict = Verdict(True, f"Champion: {new}, version {champion.version} had {standing['macro_f1']:.3f}.")
    else:
        verdict = Verdict(False, f"Not champion: {new}, version {champion.version} has {standing['macro_f1']:.3f}.")
    client = mlflow.MlflowClient()
    client.set_model_version_tag(version.name, version.version, "test_macro_f1", f"{metrics['macro_f1']:.4f}")
    client.update_model_version(version.name, version.version, description=f"{verdict.reason}\n\n{NOTICE}")
    if verdict.promoted:
        client.set_registered_model_alias(version.name, CHAMPION, version.version)
    return verdict
