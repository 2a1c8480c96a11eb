"""Say what this machine can do: Python, torch and CUDA, hub and mirrors, tracking store, data, free disk.

`ultrasound doctor` ends with exit code 1 where the main job (`dvc repro`, then `mlflow run . -e train`) could not run.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import requests

from ultrasound.commands import CATALOG, DATA, PREPARED
from ultrasound.errors import InputError
from ultrasound.sections import Params

SECTIONS = ()
MIN_FREE_GB = 3  # the images twice, prepared arrays, and the models of a search
TIMEOUT = 5  # seconds


def run(params: Params) -> None:
    """Print one line a check.

    Raises:
        InputError: a check fails without which the main job cannot run.
    """
    checks: list[tuple[str, Callable[[Params], tuple[bool, str]]]] = [
        ("Python", _python), ("packages", _packages), ("torch", _torch), ("data", _data),
        ("mirrors", _mirrors), ("weights", _weights),
        ("tracking", _tracking), ("disk", _disk),
    ]  # fmt: skip
    failed = []
    for name, check in checks:
        fine, text = check(params)
        print(f"{'ok  ' if fine else 'FAIL'} {name:<9} {text}")
        failed += [] if fine else [name]
    if failed:
        raise InputError(f"the main job cannot run here: see {', '.join(failed)} above")


def _python(params: Params) -> tuple[bool, str]:
    return sys.version_info >= (3, 11), f"{sys.version.split()[0]} (3.11 or newer is needed)"


def _packages(params: Params) -> tuple[bool, str]:
    names = ("mlflow", "dvc", "optuna", "timm", "accelerate")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        return False, f"{', '.join(missing)} missing: run `make setup`"
    return True, ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _torch(params: Params) -> tuple[bool, str]:
    try:
        import torch
    except ImportError as error:
        return False, f"cannot be imported ({error}): run `make setup`"
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return True, f"{torch.__version__}, CUDA {torch.version.cuda}: {card.name}, {card.total_memory / 2**30:.0f} GiB"
    needs_cuda = params.train.device == "cuda"
    return not needs_cuda, f"{torch.__version__}, no CUDA GPU: trains on {os.cpu_count()} CPU cores, slowly" + (
        ", but train.device is cuda" if needs_cuda else ""
    )


def _data(params: Params) -> tuple[bool, str]:
    if (PREPARED / "prepared.json").is_file():
        return True, f"{PREPARED}/ is there"
    if CATALOG.is_file() or (DATA.is_dir() and any(DATA.iterdir())):
        return True, "downloaded, not prepared: `dvc repro` does it"
    if params.data.source == "phantom":
        return True, "phantoms, made by `dvc repro`"
    if params.data.source != "busi":
        found = params.data.path is not None and Path(params.data.path).is_dir()
        return found, f"data.path {params.data.path} {'is there' if found else 'is no folder'}"
    if archive := os.environ.get("BUSI_ARCHIVE"):
        found = Path(archive).is_file()
        return found, f"not yet there; BUSI_ARCHIVE names {'the archive' if found else 'no file'}"
    found = any(_answers(url) for url in params.download.mirrors)
    return found, "not yet there; " + ("a mirror answers" if found else "no mirror answers: set BUSI_ARCHIVE")


def _mirrors(params: Params) -> tuple[bool, str]:
    answers = {urlsplit(url).netloc: _answers(url) for url in params.download.mirrors}
    return True, ", ".join(f"{host} {'answers' if answer else 'does not answer'}" for host, answer in answers.items())


def _weights(params: Params) -> tuple[bool, str]:
    from huggingface_hub import constants

    from ultrasound.learning import backbone

    name, weights = params.model.name, params.model.weights
    hub = _answers(constants.ENDPOINT)
    text = f"{constants.ENDPOINT} {'answers' if hub else 'does not answer'}; model.weights is {weights}"
    if weights == "imagenet":
        fine = hub or backbone.is_cached(name)
    elif weights == "packaged":
        fine = name in backbone.PACKAGED
    else:
        fine = weights == "none" or Path(weights).is_file()
    return fine, text + ("" if fine else f", which cannot be had for {name}: see model.weights in `train --help`")


def _tracking(params: Params) -> tuple[bool, str]:
    from ultrasound.tracking import store

    return store.answers()


def _disk(params: Params) -> tuple[bool, str]:
    free = shutil.disk_usage(".").free / 1e9
    return free >= MIN_FREE_GB, f"{free:.0f} GB free ({MIN_FREE_GB} are needed)"


def _answers(url: str) -> bool:
    try:
        requests.head(url, timeout=TIMEOUT)
    except requests.RequestException:
        return False
    return True  # whatever it answers: some hosts refuse HEAD
