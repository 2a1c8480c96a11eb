"""From a run with a model to a version in the registry: evaluated on the locked test set, offered to the gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import pandas as pd
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from ultrasound.errors import signals_wait
from ultrasound.images.prepared import Prepared
from ultrasound.sections import Params, Register
from ultrasound.tracking import evaluation, gate, models, provenance, registry, runs, store
from ultrasound.tracking.evaluation import Evaluation
from ultrasound.tracking.gate import Verdict

RESAMPLES = 2000  # of the comparison with the champion


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


def offer(found: Run, params: Params, data: Prepared, catalog: pd.DataFrame) -> Offered:
    """Make a version of `register.name` from a run's model; the gate says whether it becomes champion.

    Models that were scored on the same test set before are not scored again; others in a child of the active run.
    """
    registry.require_two_names(params)
    tags = provenance.tags(data)

    def scored(model_uri: str, trained: Run, name: str) -> Evaluation:
        known = evaluation.known(model_uri, data)
        if known is not None:
            return known
        with runs.child("evaluate", name, {}, tags):
            return evaluation.evaluate(model_uri, data, catalog, params, trained)

    def scored_version(version: ModelVersion) -> Evaluation:
        with registry.evaluable(version):
            # Runs often have equal names, children of one run must not.
            uri, trained = registry.model_uri(version), registry.run_of(version)
            return scored(uri, trained, f"evaluate-{version.version}")

    new = scored(found.data.tags[store.MODEL_TAG], found, f"evaluate-{found.info.run_name}")
    carried = {key: found.data.tags[key] for key in (*tags, "seed")}
    with registry.locked(), signals_wait():
        models.attach(found.data.tags[store.MODEL_TAG], evaluation.card_of(new.run_id))
        version = registry.version_of(found, params.register_.name, {**carried, "evaluation_run": new.run_id})
        standing = registry.champion(params.register_.name)
    if standing:
        scored_version(standing)  # it may take minutes, which is too long under the lock
    verdict = decide(version, new, params.register_, tags, scored_version)
    runs.tag(registered_version=f"{version.name}/{version.version}", verdict=verdict.reason)
    return Offered(version, new, verdict)


def decide(
    version: ModelVersion, scored: Evaluation, rules: Register, tags: Mapping[str, str],
    scored_version: Callable[[ModelVersion], Evaluation],
) -> Verdict:  # fmt: skip
    """Judge a version against the champion that stands, and make it champion or challenger, under the registry's lock.

    Args:
        scored: the version's evaluation.
        tags: the digests of today's data and split.
        scored_version: gives the evaluation of another version on the same images.
    """
    with registry.locked(), signals_wait():
        before = registry.champion(version.name)
        if not registry.is_comparable(version, tags):
            reason = "It was trained on other data or another split than today's and may have learnt from these images."
            verdict = Verdict(False, (reason,), {})
        elif before is None:
            verdict = gate.judge(scored.metrics, rules, "", None)
        elif str(before.version) == str(version.version):
            verdict = Verdict(True, ("It was champion before.",), {})
        else:
            other = evaluation.predictions(scored_version(before).run_id)
            gain = gate.difference(evaluation.predictions(scored.run_id), other, RESAMPLES)
            against = f"version {before.version}"
            if not registry.is_comparable(before, tags):
                against += " (which was trained on other data or another split and may have learnt from these images)"
            verdict = gate.judge(scored.metrics, rules, against, gain)
        registry.settle(version, verdict, before)
    return verdict
