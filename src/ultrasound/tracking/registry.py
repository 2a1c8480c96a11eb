"""The model registry: versions of one registered model, which of them is champion, and the record of every change.

Who moves the alias holds the registry's lock and reads the champion again inside it. Every decision is an event, a file
of its own among the artifacts of one run, `registry-NAME`: nothing is ever written over.
"""

from __future__ import annotations

import datetime
import fcntl
import getpass
import hashlib
import json
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from ultrasound import NOTICE
from ultrasound.errors import InputError
from ultrasound.tracking import mutex
from ultrasound.tracking.gate import Verdict
from ultrasound.tracking.provenance import DIGESTS
from ultrasound.tracking.store import MODEL_TAG

CHAMPION, CHALLENGER = "champion", "challenger"
EVENTS = "events"
PROMOTED, REFUSED, ROLLED_BACK = "promoted", "refused", "rolled back"
LOG_TAG = "registry_of"


def model_uri(version: ModelVersion) -> str:
    """The logged model behind a version: what evaluations are kept under."""
    return version.tags.get(MODEL_TAG) or f"models:/{version.name}/{version.version}"


def version_of(run: Run, name: str, tags: Mapping[str, str]) -> ModelVersion:
    """Make a version of `name` from a run's model, or return the one that was made from it before."""
    uri = run.data.tags[MODEL_TAG]
    for version in mlflow.MlflowClient().search_model_versions(f"name = '{name}'"):
        if model_uri(version) == uri:
            return version
    return mlflow.register_model(uri, name, tags={MODEL_TAG: uri, "run_id": run.info.run_id, **tags})


def champion(name: str) -> ModelVersion | None:
    """The version that serves now, if there is one."""
    try:
        return mlflow.MlflowClient().get_model_version_by_alias(name, CHAMPION)
    except mlflow.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model; no such alias
            return None
        raise


def is_comparable(version: ModelVersion, tags: Mapping[str, str]) -> bool:
    """Whether a version was trained on today's data and split, so that today's test set is unseen by it."""
    return all(version.tags.get(key) == tags[key] for key in DIGESTS)


@contextmanager
def locked() -> Iterator[None]:
    """Hold the registry's lock until the block ends; waits for whoever holds it.

    A database is locked for all machines; of a server that is spoken to over HTTP, this machine's share alone.
    """
    address = mlflow.get_registry_uri()
    if address.startswith(("sqlite", "postgresql")):
        with mutex.held(address):
            yield
        return
    name = f"ultrasound-{hashlib.sha256(address.encode()).hexdigest()[:16]}.lock"
    with Path(tempfile.gettempdir(), name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def settle(version: ModelVersion, verdict: Verdict, before: ModelVersion | None) -> None:
    """Write a verdict to a version, move the aliases by it, and record it; the caller holds the lock.

    Args:
        before: the champion so far.
    """
    client, name, number = mlflow.MlflowClient(), version.name, version.version
    is_new = before is None or str(before.version) != str(number)
    for key, value in {
        "verdict": verdict.reason,
        "decided_at": _now(),
        "decided_by": _who(),
        **{f"test_{figure}": f"{value:.4f}" for figure, value in verdict.figures.items()},
    }.items():
        client.set_model_version_tag(name, number, key, value)
    client.update_model_version(name, number, description=f"{verdict.reason}\n\n{NOTICE}")
    if verdict.promoted and is_new:
        client.set_registered_model_alias(name, CHAMPION, number)
        _forget_challenger(name, number)
    elif is_new:
        client.set_registered_model_alias(name, CHALLENGER, number)
    if is_new:
        _record(name, PROMOTED if verdict.promoted else REFUSED, number, before and before.version, verdict)


def roll_back(name: str) -> ModelVersion:
    """Give the alias back to the champion before this one, with the lock held; the one from before that, the next time.

    Raises:
        InputError: there is no champion, or none before it.
    """
    with locked():
        now = champion(name)
        if now is None:
            raise InputError(f"{name} has no champion in {mlflow.get_registry_uri()}")
        stood: list[str] = []
        for event in events(name):
            if event["kind"] == PROMOTED:
                stood.append(event["version"])
            elif event["kind"] == ROLLED_BACK:
                stood.pop()
        if stood and stood[-1] == str(now.version):
            stood.pop()
        if not stood:
            raise InputError(f"{name}: no version was champion before version {now.version}")
        client = mlflow.MlflowClient()
        former = client.get_model_version(name, stood[-1])
        client.set_registered_model_alias(name, CHAMPION, former.version)
        reason = f"Rolled back from version {now.version} by {_who()}."
        verdict = Verdict(True, (reason,), {})
        client.set_model_version_tag(name, now.version, "verdict", f"Champion no more: {reason}")
        _record(name, ROLLED_BACK, former.version, now.version, verdict)
    return former


def events(name: str) -> list[dict[str, Any]]:
    """Every decision on a registered model, from the first: number, at, by, host, kind, version, former, reason ..."""
    run = _log_of(name)
    if run is None:
        return []
    folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/{EVENTS}"))
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def _record(name: str, kind: str, version: str, former: str | None, verdict: Verdict) -> None:
    client, run = mlflow.MlflowClient(), _log_of(name)
    if run is None:
        with mlflow.start_run(run_name=f"registry-{name}", nested=True, log_system_metrics=False) as run:
            mlflow.set_tags({LOG_TAG: name, "verb": "registry", "mlflow.note.content": NOTICE})
    number = len(client.list_artifacts(run.info.run_id, EVENTS)) + 1
    event = {
        "number": number, "at": _now(), "by": _who(), "host": socket.gethostname(), "kind": kind,
        "version": str(version), "former": str(former) if former else None, "reason": verdict.reason,
        "figures": verdict.figures,
    }  # fmt: skip
    client.log_dict(run.info.run_id, event, f"{EVENTS}/{number:06d}.json")


def _log_of(name: str) -> Run | None:
    found: list[Run] = mlflow.search_runs(
        filter_string=f"tags.{LOG_TAG} = '{name}'", search_all_experiments=True, max_results=1, output_format="list"
    )
    return found[0] if found else None


def _forget_challenger(name: str, number: str) -> None:
    """The champion is nobody's challenger."""
    client = mlflow.MlflowClient()
    if str(client.get_registered_model(name).aliases.get(CHALLENGER)) == str(number):
        client.delete_registered_model_alias(name, CHALLENGER)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _who() -> str:
    return getpass.getuser()
