"""The journal of a prediction that runs: what has been answered, so that a killed run loses one batch at most.

JSON lines beside the output: the first says which model and folder the others belong to. Who has the file open holds
its lock, which the system gives back if the process dies.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ultrasound.errors import InputError

Stamp = tuple[int, int]  # size in bytes, time of the last change in ns: another one is another file
Kept = dict[str, tuple[Stamp, dict[str, Any]]]  # name of a file -> what it was, what was answered

TOLERANCE = 1e-3  # between the probabilities of one model on two machines; two models differ by more


class Journal:
    """The journal of the predictions that `out` is to hold; a context manager, which removes it when `finished`.

    Raises, when entered:
        InputError: another process writes the same predictions, or the folder cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.file = out.with_name(f"{out.name}.partial")
        self.finished = False

    def __enter__(self) -> Self:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            while True:
                self.stream = self.file.open("a+b")
                fcntl.flock(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_there():  # else its owner has just removed it
                    return self
                self.stream.close()
        except BlockingIOError:
            self.stream.close()
            raise InputError(f"another predict writes {self.file}: wait for it, or choose another --out") from None
        except OSError as error:
            raise self._unwritable(error) from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.finished or os.fstat(self.stream.fileno()).st_size == 0:
            self.file.unlink(missing_ok=True)
        with suppress(OSError):  # what a full disk did not take has been told
            self.stream.close()

    def begin(self, belongs: dict[str, Any]) -> Kept:
        """Read what was answered before, by the same model in the same folder; else begin anew, and say so.

        Args:
            belongs: `folder`, `model_version`, `data_version`, `segmenter_version` and `segmenter_data_version`
                (empty without one), and `probabilities` that the model gives a known image.
        """
        self.stream.seek(0)
        first = _row(self.stream.readline())
        kept: Kept = {}
        end = 0
        if first is not None and _is_same(first, belongs):
            end = self.stream.tell()
            for line in self.stream:
                row = _row(line)
                if row is None or row.keys() != {"file", "stamp", "answer"}:  # torn by what ended that run
                    break
                kept[row["file"]] = ((row["stamp"][0], row["stamp"][1]), row["answer"])
                end += len(line)
        elif first is not None:
            print(f"{self.file} holds answers {_difference(first, belongs)}: beginning anew")
        try:
            self.stream.truncate(end)
            if not end:
                self._write([belongs])
        except OSError as error:
            raise self._unwritable(error) from None
        return kept

    def add(self, answered: Kept) -> None:
        """Append answers.

        Raises:
            InputError: the disk takes no more.
        """
        try:
            self._write({"file": name, "stamp": stamp, "answer": answer} for name, (stamp, answer) in answered.items())
        except OSError as error:
            raise self._unwritable(error) from None

    def _write(self, rows: Any) -> None:
        self.stream.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        self.stream.flush()

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.stream.fileno()), self.file.stat())
        except FileNotFoundError:
            return False

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self.file} cannot be written: {error.strerror}")


def _row(line: bytes) -> dict[str, Any] | None:
    """What a line says; nothing if it is not whole."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both belong to one model and folder.

    A number of a version may have been given twice, after a registry was begun anew, and a server does not tell more:
    so the model is also known by what it says of a known image.
    """
    named = ("folder", "model_version", "data_version", "segmenter_version", "segmenter_data_version")
    before, now = one.get("probabilities", []), other["probabilities"]
    if any(one.get(key, "") != other.get(key, "") for key in named) or len(before) != len(now):
        return False
    return all(abs(p - q) <= TOLERANCE for p, q in zip(before, now, strict=True))


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    if before.get("folder") != now["folder"]:
        return f"to images of {before.get('folder')}"
    if before.get("segmenter_version", "") != now.get("segmenter_version", ""):
        were, are = (each.get("segmenter_version") or "no segmenter" for each in (before, now))
        return f"with the outlines of {were}, and {are} answers now"
    if before.get("segmenter_data_version", "") != now.get("segmenter_data_version", ""):
        return f"with the outlines of another {before.get('segmenter_version', '')}".rstrip()
    other = "another " if before.get("model_version") == now["model_version"] else ""
    return f"of {other}{before.get('model_version')}, and {now['model_version']} answers now"
