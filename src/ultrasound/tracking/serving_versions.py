"""Which version of a registered model an alias points to, and its files, checked, in a folder of the server's own."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import mlflow
from mlflow.environment_variables import (
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR,
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
)

from ultrasound.errors import InputError
from ultrasound.inference import manifest
from ultrasound.tracking.store import MANIFEST_TAG, bare

ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # no such model; no such alias


class AbsentError(InputError):
    """No version has this alias."""


@dataclasses.dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        number: as the registry counts, "3".
        run_id: of the run that it was trained in, "" if nobody said.
        digest: SHA-256 of the list of its files as they were registered, "" if it has none.
        experiment_id: of the run's experiment, "" if nobody has looked, see `with_experiment`.
    """

    name: str
    number: str
    run_id: str
    digest: str
    experiment_id: str = ""

    @property
    def label(self) -> str:
        """As `breast-ultrasound/3`."""
        return f"{self.name}/{self.number}"


def answer_soon() -> None:
    """Let a registry behind HTTP fail within seconds, so that it is asked again instead of waited for."""
    MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(1)
    MLFLOW_HTTP_REQUEST_TIMEOUT.set(10)


def resolve(name: str, alias: str) -> Version:
    """The version that an alias points to now.

    Raises:
        AbsentError: there is no such model or alias.
        InputError: the registry does not answer.
    """
    try:
        found = mlflow.MlflowClient().get_model_version_by_alias(name, alias)
    except mlflow.MlflowException as error:
        if error.error_code not in ABSENT:
            raise _unreachable(error) from None
        raise AbsentError(
            f"{bare(mlflow.get_registry_uri())} has no {name} with the alias {alias}: "
            "run `python -m ultrasound register` first (for a segmenter with --register.run segmenter), which makes a "
            "version that passes the gate champion"
        ) from None
    except Exception as error:  # a database's driver raises its own
        raise _unreachable(error) from None
    run_id = found.run_id or found.tags.get("run_id", "")
    return Version(name, str(found.version), run_id, found.tags.get(MANIFEST_TAG, ""))


def with_experiment(version: Version) -> Version:
    """The same with the experiment of its run, for a link to it; without, where the store does not tell."""
    try:
        return dataclasses.replace(version, experiment_id=str(mlflow.get_run(version.run_id).info.experiment_id))
    except Exception:  # no run is known, it was deleted, or a database's driver raises its own
        return version


def fetch(version: Version, folder: Path) -> Path:
    """Copy the files of a version into `folder`, which is made, and check them.

    Returns:
        The folder of the model.

    Raises:
        InputError: they are not there, or they were changed after the version was registered.
    """
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
    folder.mkdir(parents=True)
    try:
        model = Path(mlflow.artifacts.download_artifacts(f"models:/{version.label}", dst_path=str(folder)))
    except Exception as error:  # every kind of store raises its own
        raise InputError(f"the files of {version.label} cannot be read ({type(error).__name__})") from None
    for folder in list(model.rglob("__pycache__")):  # in no list of files, and Python would run it instead of the code
        shutil.rmtree(folder)
    if version.digest:  # nothing of the model has run yet
        file = model / manifest.FILE
        if not file.is_file() or manifest.digest(file.read_text(encoding="utf-8")) != version.digest:
            raise InputError(f"{version.label} was changed after it was registered: register it anew")
        try:
            manifest.check(model)
        except InputError as error:
            raise InputError(f"{version.label} was changed after it was registered: {error}") from None
    return model


def _unreachable(error: Exception) -> InputError:
    return InputError(f"the registry {bare(mlflow.get_registry_uri())} does not answer ({type(error).__name__})")
