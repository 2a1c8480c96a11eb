"""Where the answers of a prediction come from: the registered model on this machine, or a server that runs it."""

from __future__ import annotations

import base64
import dataclasses
import math
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.util import Retry

from ultrasound.errors import InputError, ParameterError, signals_wait
from ultrasound.serving import TOKEN

if TYPE_CHECKING:
    from ultrasound.inference.outliner import Outliner
    from ultrasound.inference.predictor import Decoded, Predictor

Answer = dict[str, Any]  # the columns of the served model

SHAPES = ("lesions", "lesion_area_share", "taller_than_wide", "circularity")  # columns of the served segmenter
SEGMENTER = ("segmenter_version", "segmenter_data_version")  # columns of `WithShapes` that name it
OWN = {"classifier": ("label",), "segmenter": SHAPES}  # what tells the two apart
THREADS = 2  # decode the images of one batch
WAITS = 30  # answers of 429 and 503 with Retry-After that are followed, for one request
LONGEST_WAIT = 10  # seconds of one such wait
BROKEN = 2  # connections that may break under a request: a server closes one that was idle
TIMEOUT = (10, 300)  # seconds: until connected, between two pieces of an answer
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Source(Protocol):
    """What answers to images."""

    def answers(self, images: Mapping[str, bytes]) -> dict[str, Answer | str]:
        """Name -> content of 1 to 16 files, to name -> answer, or a sentence that says why there is none.

        Raises:
            InputError: it does not answer to any.
        """


@dataclasses.dataclass(frozen=True)
class Local:
    """A classifier, or a segmenter, in this process."""

    predictor: Predictor | Outliner

    def answers(self, images: Mapping[str, bytes]) -> dict[str, Answer | str]:
        """See `Source`."""
        with ThreadPoolExecutor(THREADS) as threads:
            found = dict(zip(images, threads.map(self._decoded, images, images.values()), strict=True))
        decoded = {name: each for name, each in found.items() if not isinstance(each, str)}
        answers = self.predictor.answers(list(decoded.values())) if decoded else []
        refused = {name: each for name, each in found.items() if isinstance(each, str)}
        return {**dict(zip(decoded, answers, strict=True)), **refused}

    def _decoded(self, name: str, content: bytes) -> Decoded | str:
        try:
            return self.predictor.decoded(content, name)
        except InputError as error:
            return str(error)


@dataclasses.dataclass(frozen=True)
class WithShapes:
    """A classifier's answers, and beside them the shape of the lesion that a segmenter finds."""

    classifier: Source
    segmenter: Source

    def answers(self, images: Mapping[str, bytes]) -> dict[str, Answer | str]:
        """See `Source`; adds `SHAPES`, empty where the segmenter abstains, why it does, and what names it.

        A file that the segmenter does not take keeps its class: the two may differ in what they take.
        """
        found = self.classifier.answers(images)
        classified = {name: images[name] for name, each in found.items() if isinstance(each, dict)}
        for name, shape in self.segmenter.answers(classified).items() if classified else ():
            answer = found[name]
            assert isinstance(answer, dict)
            told: Answer = {"abstain": True, "abstain_reason": shape} if isinstance(shape, str) else shape
            for key in SHAPES:
                value = None if told["abstain"] else told[key]
                answer[key] = math.nan if value is None else float(value)
            answer["segmenter_abstain_reason"] = told["abstain_reason"]
            answer |= dict(zip(SEGMENTER, (told.get("model_version"), told.get("data_version")), strict=True))
        return found


def local(name: str, alias: str, kind: str = "classifier") -> Local:
    """Load the version of a registered model that an alias points to.

    Args:
        kind: `classifier` or `segmenter`.

    Raises:
        InputError: there is none, or its files are not those that were registered.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # the images have one
    # Imported here: who asks a server needs neither MLflow nor ONNX Runtime, which take seconds.
    from ultrasound.inference import manifest, outliner, predictor
    from ultrasound.tracking import serving_versions

    with tempfile.TemporaryDirectory() as folder:
        with signals_wait():
            version = serving_versions.resolve(name, alias)
            model = serving_versions.fetch(version, Path(folder, "model"))
        manifest.check(model)
        saved = model / "artifacts" / kind
        load = outliner.load if kind == "segmenter" else predictor.load
        return Local(load(saved, version.label))


class Remote:
    """A server of the model: `python -m ultrasound serve`, or MLflow's own.

    Args:
        url: its address, without /invocations.
        token: the bearer token that it asks for, if any.
        kind: of the model, `classifier` or `segmenter`.

    Raises:
        ParameterError: that is no address.
    """

    def __init__(self, url: str, token: str | None, kind: str = "classifier") -> None:
        self.expected = {"abstain", "abstain_reason", "model_version", "data_version", *OWN[kind]}
        try:
            parts = urlsplit(url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_address = False
        if not is_address or parts.username or parts.query or parts.fragment:
            raise ParameterError(f"{url} is no address of a server, such as http://127.0.0.1:5001")
        self.url = url.rstrip("/")
        self.session = requests.Session()
        self.session.trust_env = parts.hostname not in LOOPBACK  # no proxy reaches this machine
        self.session.auth = _Bearer(token) if token else None
        waits = Retry(
            WAITS, connect=0, read=BROKEN, other=0, redirect=0, allowed_methods=None, raise_on_status=False,
            retry_after_max=LONGEST_WAIT,
        )  # fmt: skip
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=waits))

    def answers(self, images: Mapping[str, bytes]) -> dict[str, Answer | str]:
        """See `Source`; a request that is refused for its content is asked again image by image."""
        response = self._post(images)
        if response.status_code == 200:
            return dict(zip(images, self._predictions(response, len(images)), strict=True))
        if response.status_code in (400, 408, 413, 500) and len(images) > 1:
            return {name: answer for each in images.items() for name, answer in self.answers(dict([each])).items()}
        (name,) = images if len(images) == 1 else ("",)
        sentence = _message(response)
        if response.status_code in (400, 413):
            return {name: _about(name, sentence)}
        if response.status_code == 500:
            raise InputError(f"{self.url} fails on {name}: {sentence}")
        raise self._refused(response.status_code, sentence)

    def _post(self, images: Mapping[str, bytes]) -> requests.Response:
        rows = [[base64.b64encode(content).decode()] for content in images.values()]
        body = {"dataframe_split": {"columns": ["image"], "data": rows}}
        try:
            return self.session.post(f"{self.url}/invocations", json=body, timeout=TIMEOUT, allow_redirects=False)
        except requests.Timeout:
            raise InputError(f"{self.url} does not answer in time: see its log") from None
        except requests.exceptions.SSLError:
            raise InputError(f"{self.url}: its certificate is not trusted, or it speaks no TLS") from None
        except requests.RequestException as error:
            raise InputError(
                f"{self.url} does not answer ({type(error).__name__}): start the server with "
                "`python -m ultrasound serve`, or let the model answer in this process"
            ) from None

    def _predictions(self, response: requests.Response, count: int) -> list[Answer]:
        try:
            rows = response.json()["predictions"]
        except (ValueError, KeyError, TypeError):
            rows = None
        if (
            not isinstance(rows, list)
            or len(rows) != count
            or not all(isinstance(row, dict) and self.expected <= row.keys() for row in rows)
        ):
            raise InputError(f"{self.url} does not answer as a server of this model does: check the address")
        return rows

    def _refused(self, status: int, sentence: str) -> InputError:
        if status in (401, 403):
            return InputError(f"{self.url} asks for a token: set the environment variable {TOKEN} to it")
        if status in (429, 503):
            return InputError(f"{self.url} is too busy to answer: try again later")
        return InputError(f"{self.url} answers with HTTP {status}: {sentence or 'check the address'}")


class _Bearer(AuthBase):
    """The header Authorization; as a header of the session a line in .netrc would go before it."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def _message(response: requests.Response) -> str:
    try:
        return str(response.json()["message"]).strip()
    except (ValueError, KeyError, TypeError):
        return ""


def _about(name: str, sentence: str) -> str:
    """The sentence of a server about the only image of a request, as the same model says it here."""
    words = sentence.removesuffix(".")
    return f"{name}{words.removeprefix('Image 1')}" if words.startswith("Image 1 ") else f"{name}: {words}"
