"""The list of a model's files with their hashes: what was registered is what answers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ultrasound.errors import InputError

FILE = "manifest.json"
# Written beside a model after it was logged: the list itself, what MLflow notes at a download, and the model card.
APART = (FILE, "registered_model_meta", "model_card.md")


def make(folder: Path) -> str:
    """The text of the list of all files in a model's folder but those `APART`."""
    hashes = {str(file.relative_to(folder)): _hash(file) for file in _files(folder)}
    return json.dumps(hashes, indent=1) + "\n"


def digest(text: str) -> str:
    """SHA-256 of a list, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def check(folder: Path) -> None:
    """Compare every file in a model's folder with its list.

    Raises:
        InputError: a file was changed, is missing or was added; or there is no list.
    """
    try:
        expected = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"the model has no {FILE}: it was not saved by this project, or is not complete") from None
    except ValueError:
        raise InputError(f"{FILE} of the model is damaged: take the model from the registry again") from None
    files = {str(file.relative_to(folder)): file for file in _files(folder)}
    for name in sorted(set(expected) | set(files)):
        if name not in files:
            raise InputError(f"{name} of the model is missing: take the model from the registry again")
        if name not in expected:
            raise InputError(f"{name} was added to the model after it was saved: take it from the registry again")
        if _hash(files[name]) != expected[name]:
            raise InputError(f"{name} of the model was changed after it was saved: take it from the registry again")


def _files(folder: Path) -> list[Path]:
    """Bytecode is made anew from the code by whoever imports it."""
    found = (file for file in sorted(folder.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)
    return [file for file in found if str(file.relative_to(folder)) not in APART]


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
