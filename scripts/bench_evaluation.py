"""`make bench-evaluation`: how long an evaluation of all prepared images takes, heat maps and report included.

Takes the newest model of today's data and split, or that of `--run`, on every image, also on those that it was trained
on: the scores mean nothing, and nothing of them is kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time

import mlflow
import numpy as np

from ultrasound import params as parameters
from ultrasound.commands import CATALOG, PREPARED
from ultrasound.errors import InputError
from ultrasound.images import catalog, prepared
from ultrasound.tracking import models, provenance, reporting, store, testing


def main() -> None:
    """Measure and print seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="latest", help="latest, best, or the id of a run with a model")
    arguments = parser.parse_args()
    try:
        params, data, table = parameters.load(), prepared.read(PREPARED), catalog.read(CATALOG)
        tags = provenance.tags(data)
        trained = store.find(arguments.run, {key: tags[key] for key in provenance.DIGESTS})
        uri = trained.data.tags[store.MODEL_TAG]
        model = models.load(uri)
    except InputError as error:
        sys.exit(f"error: {error}")
    rows = np.arange(len(data.samples))
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        kept = mlflow.create_experiment("bench-evaluation", artifact_location=f"{folder}/artifacts")
        with mlflow.start_run(experiment_id=kept, log_system_metrics=False) as run:
            started = time.perf_counter()
            tested = testing.test(model, data, rows, table, params.evaluate)
            calculated = time.perf_counter() - started
            reporting.log(tested, reporting.content(tested, uri, data, trained), run, params.evaluate.gallery)
            total = time.perf_counter() - started
    size = data.preparation.size
    print(f"{trained.data.params['model.name']}, {len(rows)} images of {size} x {size} pixels")
    print(f"  answers, heat maps, intervals  {calculated:6.1f} s")
    print(f"  all, with report and logging   {total:6.1f} s")


if __name__ == "__main__":
    main()
