"""Answers to all images of a folder, as a table: asked for in batches, kept in a journal, written whole."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from ultrasound.errors import InputError, ParameterError
from ultrasound.serving.finding import Found, Scan, in_words
from ultrasound.serving.journal import Journal, Kept
from ultrasound.serving.sources import SEGMENTER, Answer, Source

FORMATS = (".csv", ".parquet")
BATCH = 16  # images; the served model takes no more at once
BATCH_BYTES = 10_000_000  # of a request, whose images are in base64
LARGEST = 8_000_001  # bytes that are read of one file; the model refuses more than 8 MB
CHANGES = 3  # a server's model may be followed by another one while it is asked; not for ever
FIRST = 5  # bad files that are named


class _AnotherModelError(Exception):
    """The server has begun to answer with another version."""


def require_format(out: str | None) -> Path:
    """The file that is to be written.

    Raises:
        ParameterError: none is named, or its suffix is neither .csv nor .parquet.
    """
    if not out or Path(out).suffix.lower() not in FORMATS:
        raise ParameterError(f"--out {out or 'is missing'}: name a file that ends in .csv or .parquet")
    if Path(out).is_dir():
        raise ParameterError(f"--out {out} is a folder: name a file in it")
    return Path(out)


def predict(found: Found, source: Source, journal: Journal) -> pd.DataFrame:
    """Ask for the answers to all images that the journal does not hold yet.

    Returns:
        A row an image: `file`, the answer's columns (`prediction_set` joined by commas), `error`. One of the last two
        is empty.

    Raises:
        InputError: the source stopped answering; what was answered is in the journal.
        KeyboardInterrupt: so is it after Ctrl-C and SIGTERM.
    """
    for _ in range(CHANGES):
        model = _introduced(source)
        kept = journal.begin(_belongs(found, model))
        current = {scan.name: scan.stamp for scan in found.scans}
        answered = {name: (stamp, each) for name, (stamp, each) in kept.items() if current.get(name) == stamp}
        if answered:
            print(f"continuing: {len(answered)} of {len(found.scans)} images were answered before")
        try:
            bad = _ask(found.scans, answered, source, journal, model)
            return _table(found.scans, answered, bad, model)
        except _AnotherModelError:
            continue
        except (InputError, KeyboardInterrupt) as stopped:
            stopped.args = (
                f"{stopped}; {len(answered)} of {len(found.scans)} images are answered in {journal.file}, from where "
                "the same command continues",
            )
            raise
    raise InputError("the server changes its model again and again: wait until it stays")


def write(table: pd.DataFrame, out: Path) -> None:
    """Write a table as its suffix says; a file that is there is replaced by the whole one.

    Raises:
        InputError: it cannot be written.
    """
    new = out.with_name(f".{out.name}.new")
    try:
        with new.open("wb") as stream:
            if out.suffix.lower() == ".csv":
                table.to_csv(stream, index=False)
            else:
                table.to_parquet(stream, index=False)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(out)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}") from None
    finally:
        new.unlink(missing_ok=True)


def summary(table: pd.DataFrame, found: Found, out: Path) -> str:
    """What became of the images, in a few lines."""
    bad = table.loc[table["error"] != "", "file"].tolist()
    abstained = int(table["abstain"].sum())
    lines = [
        f"{len(table)} images: {len(table) - len(bad)} answered, from {abstained} of them the model abstained; "
        f"{len(bad)} bad"
    ]
    if bad:
        more = f" and {len(bad) - FIRST} more" if len(bad) > FIRST else ""
        lines.append(f"bad: {', '.join(bad[:FIRST])}{more}; column error says why")
    if found.skipped:
        lines.append(f"skipped{in_words(found.skipped, ': ')}")
    answered_by = ", ".join(table["model_version"].dropna().unique())
    return "\n".join([*lines, f"{out}: {answered_by or 'no answer'}"])


def _introduced(source: Source) -> Answer:
    """The source's answer to a picture that is the same everywhere: it tells which model answers."""
    grey = np.add.outer(np.arange(256), np.arange(256)) // 2
    buffer = io.BytesIO()
    Image.fromarray(grey.astype(np.uint8)).save(buffer, "PNG")
    answer = source.answers({"a test picture": buffer.getvalue()})["a test picture"]
    if isinstance(answer, str):
        raise InputError(f"the model answers to no image: {answer}")
    return answer


def _belongs(found: Found, model: Answer) -> dict[str, str | list[float]]:
    return {
        "folder": os.fsencode(found.folder).decode("utf-8", "backslashreplace"),
        "model_version": model["model_version"],
        "data_version": model["data_version"],
        **{key: model.get(key, "") for key in SEGMENTER},
        "probabilities": [value for name, value in model.items() if name.startswith("p_")],
    }


def _ask(scans: list[Scan], answered: Kept, source: Source, journal: Journal, model: Answer) -> dict[str, str]:
    """Fill `answered`, and the journal, batch by batch; name -> sentence of the files that have no answer.

    Those are tried again whenever the command continues: their reason may have gone.
    """
    bad: dict[str, str] = {}
    with tqdm(
        total=len(scans), initial=len(answered), desc="predict", unit="image", leave=False, disable=None
    ) as progress:
        for batch in _batches(scan for scan in scans if scan.name not in answered):
            contents: dict[str, bytes] = {}
            for scan in batch:
                try:
                    contents[scan.name] = _content(scan)
                except InputError as error:
                    bad[scan.name] = str(error)
            found = source.answers(contents) if contents else {}
            fresh: Kept = {}
            for scan in batch:
                answer = found.get(scan.name, "")
                if isinstance(answer, dict):
                    _require_same(answer, model)
                    fresh[scan.name] = (scan.stamp, answer)
                elif answer:
                    bad[scan.name] = answer
            journal.add(fresh)
            answered |= fresh
            progress.update(len(batch))
    return bad


def _content(scan: Scan) -> bytes:
    try:
        with scan.file.open("rb") as stream:
            content = stream.read(LARGEST)
    except OSError as error:
        raise InputError(f"{scan.name} cannot be read: {error.strerror}") from None
    if not content:
        raise InputError(f"{scan.name} is empty")
    return content


def _batches(scans: Iterable[Scan]) -> Iterator[list[Scan]]:
    """Groups of at most `BATCH` images that fit into one request; one that is too large for it stands alone."""
    batch: list[Scan] = []
    size = 0
    for scan in scans:
        # In base64, with the frame of its row.
        own = min(scan.stamp[0], LARGEST) * 4 // 3 + 100
        if batch and (len(batch) == BATCH or size + own > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(scan)
        size += own
    if batch:
        yield batch


def _require_same(answer: Answer, model: Answer) -> None:
    for key in ("model_version", "data_version", *SEGMENTER):
        if answer.get(key) not in (None, model.get(key)):  # none, where the segmenter did not take the file
            raise _AnotherModelError


def _table(scans: list[Scan], answered: Kept, bad: Mapping[str, str], model: Answer) -> pd.DataFrame:
    nothing = dict.fromkeys(model)
    rows = [
        {"file": scan.name, **(answered[scan.name][1] if scan.name in answered else nothing),
         "error": bad.get(scan.name, "")}
        for scan in scans
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["file", *model, "error"])
    for name, example in model.items():
        if isinstance(example, list):
            table[name] = table[name].map(", ".join, na_action="ignore")
        # One type whatever is missing, and in every format.
        if isinstance(example, bool):
            table[name] = table[name].astype("boolean")
        else:
            table[name] = table[name].astype("float64" if isinstance(example, float) else "str")
    return table
