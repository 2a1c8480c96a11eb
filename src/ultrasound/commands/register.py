"""Make a version of the registered model from a run's model, and offer it to the gate as the next champion.

Run as `mlflow run . -e register --env-manager local`, or alone: `python -m ultrasound register`. The version is
evaluated on the locked test set first. It becomes champion if it reaches what section `register` of params.yaml asks
for and is better than the champion on the same images; else it stays challenger. A run of `segment`, by its id or as
`register.run=segmenter`, becomes a version of segment.name, judged by section `segment`. `--rollback`, or
`mlflow run . -e rollback --env-manager local`, gives the alias back to the champion before.
"""

from ultrasound.commands import CATALOG, PREPARED
from ultrasound.images import catalog, prepared
from ultrasound.images.prepared import Prepared
from ultrasound.params import flatten
from ultrasound.scoring import outlines
from ultrasound.scoring.evaluation import as_text
from ultrasound.sections import Params
from ultrasound.tracking import offering, outline_offering, provenance, registry, runs, store

SECTIONS = ("register", "evaluate")
FLAGS = {"rollback": "give the alias back to the champion before this one; nothing is registered"}


def run(params: Params, rollback: bool = False) -> None:
    """Register, judge, move the alias; print the verdict."""
    name = params.register_.name
    if rollback:
        with runs.run("rollback", f"rollback-{name}", {"register.name": name}, {}):
            former = registry.roll_back(name)
        print(f"alias {registry.CHAMPION}: {name} version {former.version} again")
        return
    provenance.require_current(params)
    data = prepared.read(PREPARED)
    tags = provenance.tags(data)
    digests = {key: tags[key] for key in provenance.DIGESTS}
    if segmenter := store.find_segmenter(params.register_.run, digests):
        offer_segmenter(segmenter.info.run_id, params, data)
        return
    found = store.find(params.register_.run, digests)
    with runs.run("register", f"register-{found.info.run_name}", flatten(params, SECTIONS), tags):
        offered = offering.offer(found, params, data, catalog.read(CATALOG))
    print(f"locked test set:\n{as_text(offered.evaluation.scores, offered.evaluation.labels)}")
    print(f"{name} version {offered.version.version} from {found.info.run_name} ({found.info.run_id})")
    print(offered.verdict.reason)
    if offered.verdict.promoted:
        print(f"alias {registry.CHAMPION}: models:/{name}@{registry.CHAMPION}")


def offer_segmenter(run_id: str, params: Params, data: Prepared) -> None:
    """Register a segmenter as `segment.name`, judge, move the alias; print scores and verdict."""
    found = store.get(run_id)
    values = flatten(params, ("segment",)) | {"evaluate.resamples": params.evaluate.resamples}
    with runs.run("register", f"register-{found.info.run_name}", values, provenance.tags(data)):
        offered = outline_offering.offer(found, params, data, catalog.read(CATALOG))
    print(f"locked test set:\n{outlines.as_text(offered.evaluation.scores)}")
    version = offered.version
    print(f"{version.name} version {version.version} from {found.info.run_name} ({found.info.run_id})")
    print(offered.verdict.reason)
