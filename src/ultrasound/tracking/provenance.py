"""Where a number comes from: data, split, code and parameters, as tags of a run or a model version."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ultrasound import __version__
from ultrasound.errors import InputError
from ultrasound.images.prepared import Prepared
from ultrasound.params import flatten
from ultrasound.sections import Params

DVC_LOCK = Path("dvc.lock")
PACKAGE = Path(__file__).parents[1]
DIGESTS = ("data_digest", "split_digest")  # tags that must be equal where scores are compared


def tags(prepared: Prepared) -> dict[str, str]:
    """The tags that every run carries, and that a version takes over from the run that trained it."""
    return {
        "data_digest": prepared.data_digest,
        "split_digest": prepared.split_digest,
        "dvc_lock": hashlib.sha256(DVC_LOCK.read_bytes()).hexdigest()[:16] if DVC_LOCK.is_file() else "none",
        "git_commit": git_commit(),
        "code_digest": code_digest(),
        "ultrasound_version": __version__,
    }


def code_digest() -> str:
    """Digest of the package's own source: the same code gives the same, committed or not."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)}:".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def resume_key(verb: str, values: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Digest of all that decides what a run gives: verb, parameters, data, split and code."""
    known = {name: tags[name] for name in (*DIGESTS, "code_digest")}
    text = json.dumps([verb, dict(values), known], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def git_commit() -> str:
    """The commit of the working folder, with `+changes` where files differ from it; `none` outside of git."""
    try:
        commit = _git("rev-parse", "HEAD").strip()
        return commit + ("+changes" if _git("status", "--porcelain").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"


def require_report(page: Path, prepared: Prepared) -> Path:
    """Check that the data report, which is saved with a run, tells of the data and the split that the run uses.

    Raises:
        InputError: it is missing, or is of other data or another split.
    """
    if not page.is_file():
        raise InputError(f"{page} is missing: run `dvc repro`")
    text = page.read_text(encoding="utf-8")
    if prepared.data_digest not in text or prepared.split_digest not in text:
        raise InputError(f"{page} is of other data or another split than build/prepared: run `dvc repro`")
    return page


def require_current(params: Params) -> None:
    """Check that build/ was made with the data parameters that params.yaml holds now, by what dvc.lock recorded.

    Raises:
        InputError: a parameter of a data stage has changed since `dvc repro`.
    """
    if not DVC_LOCK.is_file():
        return  # the stages were run by hand
    now = flatten(params)
    for stage in yaml.safe_load(DVC_LOCK.read_text()).get("stages", {}).values():
        for key, used in _by_key(stage.get("params", {}).get("params.yaml", {})).items():
            if not key.startswith("download.") and now.get(key) != used:  # whence images come does not change them
                raise InputError(f"{key} is {now.get(key)!r}, but build/ was made with {used!r}: run `dvc repro`")


def _by_key(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value, from sections and single keys as dvc.lock has them."""
    found: dict[str, Any] = {}
    for name, value in recorded.items():
        found |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return found


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout
