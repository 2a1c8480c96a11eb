"""The model registry: versions of one registered model, which of them is champion, and the record of every change.

Who moves the alias holds the registry's lock and reads the champion again inside it. Every decision is an event, a file
of its own among the artifacts of one run, `registry-NAME`: nothing is ever written over. An event is recorded before
its alias moves; where a process died between the two, or somebody moved the alias by hand, the next decision records
first which version it found there.
"""

from __future__ import annotations

import datetime
import fcntl
import getpass
import hashlib
import json
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from ultrasound import NOTICE
from ultrasound.errors import InputError, ParameterError, signals_wait
from ultrasound.sections import Params
from ultrasound.tracking import mutex, store
from ultrasound.tracking.gate import Verdict
from ultrasound.tracking.provenance import DIGESTS
from ultrasound.tracking.store import MANIFEST_TAG, MODEL_TAG

CHAMPION, CHALLENGER = "champion", "challenger"
EVENTS = "events"
PROMOTED, REFUSED, ROLLED_BACK, FOUND = "promoted", "refused", "rolled back", "found"
LOG_TAG = "registry_of"


def model_uri(version: ModelVersion) -> str:
    """The logged model behind a version: what evaluations are kept under."""
    return version.tags.get(MODEL_TAG) or f"models:/{version.name}/{version.version}"


def version_of(run: Run, name: str, tags: Mapping[str, str], of: str = MODEL_TAG) -> ModelVersion:
    """Make a version of `name` from a run's model, or return the one that was made from it before.

    Args:
        of: the run's tag that names the model.
    """
    uri = run.data.tags[of]
    for version in mlflow.MlflowClient().search_model_versions(f"name = '{name}'"):
        if model_uri(version) == uri:
            return version
    known = {MODEL_TAG: uri, MANIFEST_TAG: run.data.tags[MANIFEST_TAG], "run_id": run.info.run_id}
    return mlflow.register_model(uri, name, tags={**tags, **known})


def require_two_names(params: Params) -> None:
    """Check that classifiers and segmenters are versions of two models: `serve` goes by the name.

    Raises:
        ParameterError: they are not.
    """
    if params.segment.name == params.register_.name:
        raise ParameterError(f"segment.name={params.segment.name} is register.name, too: what classifies and what "
                             "outlines are two registered models, give them two names")  # fmt: skip


def champion(name: str) -> ModelVersion | None:
    """The version that serves now, if there is one."""
    try:
        return mlflow.MlflowClient().get_model_version_by_alias(name, CHAMPION)
    except mlflow.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model; no such alias
            return None
        raise


def run_of(version: ModelVersion) -> Run:
    """The run that trained a version.

    Raises:
        InputError: it is not in the tracking store.
    """
    return store.get(version.tags.get("run_id") or version.run_id or "")


@contextmanager
def evaluable(version: ModelVersion) -> Iterator[None]:
    """Say of an `InputError` inside that this champion cannot be evaluated, and what to do."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"the champion, version {version.version} of {version.name}, cannot be evaluated on today's test set: "
            f"{error}; move or delete the alias {CHAMPION} in the MLflow UI, then register again"
        ) from None


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
    path = Path(tempfile.gettempdir(), f"ultrasound-{hashlib.sha256(address.encode()).hexdigest()[:16]}.lock")
    if not path.exists():
        path.touch()
    with path.open() as file:  # it may be another user's, who cannot be written to, but waited for
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def settle(version: ModelVersion, verdict: Verdict, before: ModelVersion | None) -> None:
    """Write a verdict to a version, record it, and move the aliases by it; the caller holds the lock.

    Args:
        before: the champion so far.
    """
    client, name, number = mlflow.MlflowClient(), version.name, version.version
    _record_what_stands(name, before)
    if before is not None and str(before.version) == str(number):
        _forget_challenger(name, number)
        return
    for figure, value in verdict.figures.items():
        client.set_model_version_tag(name, number, f"test_{figure}", f"{value:.4f}")
    _write(version, verdict.reason)
    _record(name, PROMOTED if verdict.promoted else REFUSED, number, before and before.version, verdict)
    client.set_registered_model_alias(name, CHAMPION if verdict.promoted else CHALLENGER, number)
    if verdict.promoted:
        _forget_challenger(name, number)


def roll_back(name: str) -> ModelVersion:
    """Give the alias back to the champion before this one; the next time, to the one before that.

    Raises:
        InputError: there is no champion, or none before it.
    """
    with locked(), signals_wait():
        now = champion(name)
        if now is None:
            raise InputError(f"{name} has no champion in {store.bare(mlflow.get_registry_uri())}")
        _record_what_stands(name, now)
        stood = _stood(name)
        if len(stood) < 2:
            raise InputError(f"{name}: no version was champion before version {now.version}")
        client = mlflow.MlflowClient()
        former = client.get_model_version(name, stood[-2])
        reason = f"Rolled back from version {now.version} to version {former.version} by {_who()}."
        _write(now, f"Champion no more: {reason}")
        _write(former, f"Champion: {reason}")
        _record(name, ROLLED_BACK, former.version, now.version, Verdict(True, (reason,), {}))
        client.set_registered_model_alias(name, CHAMPION, former.version)
        _forget_challenger(name, former.version)
    return former


def events(name: str) -> list[dict[str, Any]]:
    """Every decision on a registered model, from the first: number, at, by, host, kind, version, former, reason ..."""
    run = _log_of(name)
    if run is None:
        return []
    folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/{EVENTS}"))
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def _stood(name: str) -> list[str]:
    """The champion, by the events, behind those that a way back leads to."""
    stood: list[str] = []
    for event in events(name):
        version = event["version"]
        if event["kind"] == PROMOTED or (event["kind"] == FOUND and version not in stood):
            stood.append(version)
        elif event["kind"] in (ROLLED_BACK, FOUND):
            del stood[stood.index(version) + 1 :]
    return stood


def _record_what_stands(name: str, now: ModelVersion | None) -> None:
    """Record a champion that no event has made."""
    stood = _stood(name)
    if now is not None and stood[-1:] != [str(now.version)]:
        reason = "The alias was moved by hand, or whoever decided died before moving it."
        _record(name, FOUND, now.version, stood[-1] if stood else None, Verdict(True, (reason,), {}))


def _write(version: ModelVersion, reason: str) -> None:
    client, name, number = mlflow.MlflowClient(), version.name, version.version
    for key, value in {"verdict": reason, "decided_at": _now(), "decided_by": _who()}.items():
        client.set_model_version_tag(name, number, key, value)
    client.update_model_version(name, number, description=f"{reason}\n\n{NOTICE}")


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
    # Over HTTP two machines may count to the same number: no file is another's.
    client.log_dict(run.info.run_id, event, f"{EVENTS}/{number:06d}-{uuid.uuid4().hex[:8]}.json")


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
