"""Which files have not been touched since their pixels were verified, so that they need not be hashed again.

As git and DVC do, a file whose size and time of change are those that were noted counts as unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path


def note(files: Iterable[str], notes: Path) -> None:
    """Note that `files` are as the catalogue says; what was noted before is forgotten."""
    notes.write_text(json.dumps({file: _state(file) for file in files}))


def untouched(notes: Path) -> frozenset[str]:
    """The files that are as they were when they were noted; none if nothing was noted here."""
    if not notes.is_file():
        return frozenset()
    return frozenset(file for file, state in json.loads(notes.read_text()).items() if _state(file) == state)


def _state(file: str) -> list[int] | None:
    try:
        stat = Path(file).stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]
