"""Answer to all images of a folder with the registered model, here or through a running server, and write a table.

PNG, JPEG and DICOM files are taken, from folders within it, too; hidden files and masks (NAME_mask.png) are not. A
file that cannot be answered gets a row with its `error`. What is answered is kept beside the table: after a kill or
Ctrl-C the same command continues. The model is the version of register.name that serve.alias points to; with --url it
is the server's, and a bearer token comes from the environment variable ULTRASOUND_TOKEN. With --outlines the columns
lesions, lesion_area_share, taller_than_wide and circularity tell of the lesion that the champion of segment.name finds.
"""

import os
from pathlib import Path

from ultrasound.errors import InputError
from ultrasound.sections import Params
from ultrasound.serving import TOKEN, finding, predictions, sources
from ultrasound.serving.journal import Journal

SECTIONS = ()
ARGUMENTS = {"folder": "images to answer to, or one file"}
OPTIONS = {
    "out": "table to write, .csv or .parquet",
    "url": "server to ask, such as http://127.0.0.1:5001; without it the model answers in this process",
    "outlines-url": "server of the segmenter to ask, such as http://127.0.0.1:5002, instead of --outlines",
}
FLAGS = {"outlines": "also tell the size and shape of the lesion, by the registered segmenter, in this process"}


def run(
    params: Params, folder: str, out: str | None = None, url: str | None = None, outlines_url: str | None = None,
    outlines: bool = False,
) -> None:  # fmt: skip
    """Find, answer, write, tell."""
    file = predictions.require_format(out)
    token, alias = os.environ.get(TOKEN), params.serve.alias
    remote = sources.Remote(url, token) if url else None
    segmenter: sources.Source | None = sources.Remote(outlines_url, token, "segmenter") if outlines_url else None
    found = finding.find(Path(folder))
    with Journal(file) as journal:
        source: sources.Source = remote or sources.local(params.register_.name, alias)
        if outlines and segmenter is None:
            segmenter = sources.local(params.segment.name, alias, "segmenter")
        if segmenter is not None:
            source = sources.WithShapes(source, segmenter)
        table = predictions.predict(found, source, journal)
        predictions.write(table, file)
        journal.finished = True
    print(predictions.summary(table, found, file))
    if (table["error"] != "").all():
        raise InputError(f"no image of {folder} could be answered: column error of {file} says why")
