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
from ultrasound.tracking import offering, provenance, registry, runs, store

SECTIONS = ("register",)


def run(params: Params) -> None:
    """Register, compare with the champion, move the alias; print the verdict."""
    provenance.require_current(params)
    data = prepared.read(PREPARED)
    tags = provenance.tags(data)
    name = params.register_.name
    found = store.find(params.register_.run, {key: tags[key] for key in provenance.DIGESTS})
    with runs.run("register", f"register-{found.info.run_name}", flatten(params, SECTIONS), tags):
        offered = offering.offer(found, name, data, catalog.read(CATALOG))
    print(f"locked test set:\n{scoring.as_text(offered.evaluation.metrics, offered.evaluation.labels)}")
    print(f"{name} version {offered.version.version} from {found.info.run_name} ({found.info.run_id})")
    print(offered.verdict.reason)
    if offered.verdict.promoted:
        print(f"alias {registry.CHAMPION}: models:/{name}@{registry.CHAMPION}")
