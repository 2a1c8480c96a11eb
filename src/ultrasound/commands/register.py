"""Make a version of the registered model from a run's model, and let it become champion if it is better.

Run as `mlflow run . -e register --env-manager local`, or alone: `python -m ultrasound register`. The version is
evaluated on the locked test set first. A champion that was trained on other data or another split is not compared: it
may have seen images of today's test set.
"""

from ultrasound.commands import CATALOG, PREPARED
from ultrasound.images import catalog, prepared
from ultrasound.params import flatten
from ultrasound.scoring import metrics as scoring
from ultrasound.sections import Params
from ultrasound.tracking import models, provenance, registry, runs, store

SECTIONS = ("register",)


def run(params: Params) -> None:
    """Register, compare with the champion, move the alias; print the verdict."""
    provenance.require_current(params)
    data = prepared.read(PREPARED)
    tags = provenance.tags(data)
    name = params.register_.name
    found = store.find(params.register_.run, {key: tags[key] for key in provenance.DIGESTS})
    with runs.run("register", f"register-{found.info.run_name}", flatten(params, SECTIONS), tags):

        def evaluation(model_uri: str, title: str) -> models.Evaluation:
            known = models.evaluated(model_uri, data)
            if known is not None:
                return known
            with runs.child("evaluate", f"evaluate-{title}", {}, tags):
                return models.evaluate(model_uri, data, catalog.read(CATALOG))

        scored = evaluation(found.data.tags[store.MODEL_TAG], found.info.run_name)
        carried = {key: found.data.tags[key] for key in (*tags, "seed")}
        version = registry.version_of(found, name, {**carried, "evaluation_run": scored.run_id})
        champion = registry.champion(name)
        standing = None
        if champion and registry.is_comparable(champion, tags):
            standing = evaluation(registry.model_uri(champion), f"{name}-{champion.version}").metrics
        verdict = registry.promote(version, scored.metrics, champion, standing)
        runs.tag(registered_version=f"{name}/{version.version}", verdict=verdict.reason)
    print(f"locked test set:\n{scoring.as_text(scored.metrics, scored.labels)}")
    print(f"{name} version {version.version} from {found.info.run_name} ({found.info.run_id})")
    print(verdict.reason)
    if verdict.promoted:
        print(f"alias {registry.CHAMPION}: models:/{name}@{registry.CHAMPION}")
