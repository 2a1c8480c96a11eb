"""Pixels that were verified here, so that a file that was not touched since need not be hashed again.

As git and DVC do, a file whose size and time of change are those that were noted counts as unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def note(pixels: Mapping[str, str], notes: Path) -> None:
    """Note the pixel hashes of files; what was noted before is forgotten."""
    notes.write_text(json.dumps({file: [value, *_state(file)] for file, value in pixels.items()}))


def untouched(notes: Path) -> dict[str, str]:
    """File -> pixel hash, of the files that are as they were when they were noted; empty if nothing was noted here."""
    noted = json.loads(notes.read_text()) if notes.is_file() else {}
    return {file: value for file, (value, *state) in noted.items() if state == _state(file)}


def _state(file: str) -> list[int]:
    try:
        stat = Path(file).stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]
