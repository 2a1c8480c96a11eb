"""Score a run's model on the locked test set: scores with intervals, calibration, slices, heat maps, a page of it all.

Run as `mlflow run . -e evaluate --env-manager local`, or alone: `python -m ultrasound evaluate`. Look at the test
set rarely: every choice that is made by its score makes the score less true. `report.html` in the run is the page.
"""

from ultrasound.commands import CATALOG, PREPARED
from ultrasound.images import catalog, prepared
from ultrasound.params import flatten
from ultrasound.scoring import outlines
from ultrasound.scoring.evaluation import as_text
from ultrasound.sections import Params
from ultrasound.tracking import evaluation, outline_offering, provenance, runs, store

SECTIONS = ("evaluate",)
OF_CLASSIFIERS = ("evaluate.explain", "evaluate.gallery")


def run(params: Params) -> None:
    """Evaluate under a run of its own; print the table of metrics."""
    provenance.require_current(params)
    data = prepared.read(PREPARED)
    tags = provenance.tags(data)
    digests = {key: tags[key] for key in provenance.DIGESTS}
    if segmenter := store.find_segmenter(params.evaluate.run, digests):
        values = {key: value for key, value in flatten(params, SECTIONS).items() if key not in OF_CLASSIFIERS}
        with runs.run("evaluate", f"evaluate-{segmenter.info.run_name}", values, tags) as run_id:
            outlined = outline_offering.evaluate(
                segmenter.data.tags[store.SEGMENTER_TAG], data, catalog.read(CATALOG), params, segmenter
            )
        print(f"locked test set, {len(outlined.table)} images with a known outline; run {segmenter.info.run_id}")
        print(f"{outlines.as_text(outlined.scores)}\nrun {run_id}, its report.html shows all of it")
        return
    found = store.find(params.evaluate.run, digests)
    model_uri = found.data.tags[store.MODEL_TAG]
    with runs.run("evaluate", f"evaluate-{found.info.run_name}", flatten(params, SECTIONS), tags):
        scored = evaluation.evaluate(model_uri, data, catalog.read(CATALOG), params, found)
    print(f"locked test set, {scored.confusion.sum()} images; run {found.info.run_name} ({found.info.run_id})")
    print(as_text(scored.scores, scored.labels))
    print("confusion matrix (true class in rows)")
    print(" " * 14 + "".join(f"{label:>11}" for label in scored.labels))
    for label, row in zip(scored.labels, scored.confusion, strict=True):
        print(f"  {label:<12}" + "".join(f"{count:>11}" for count in row))
    print(f"run {scored.run_id}, its report.html shows all of it")
