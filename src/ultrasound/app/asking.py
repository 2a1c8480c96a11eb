"""Asks the served model over HTTP, one image a request, so that a bad file spoils no other's answer."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

import requests

from ultrasound.app import words
from ultrasound.errors import InputError

T = TypeVar("T")

TIMEOUT = (5.0, 60.0)  # seconds: until connected, between two pieces of an answer
LOOK = (2.0, 5.0)  # the same, for the question which version answers
TEXTS = ("label", "abstain_reason", "model_version", "data_version")


class ImageError(InputError):
    """The server does not take this image; others may be answered."""


class ServerError(InputError):
    """The server answers nobody at the moment, or not to this page."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the served model says of one image.

    Attributes:
        label: the most probable class.
        probabilities: class -> calibrated probability.
        flags: class -> whether its probability reaches the operating point; one class, usually `malignant`.
        prediction_set: the classes that cannot be ruled out.
        abstain: whether the model gives no answer, and `label` and `probabilities` must not be shown as one.
        abstain_reason: why, a sentence.
        model_version: as `breast-ultrasound/3`.
        data_version: digest of the data that it has learnt from.
        heat_map: a grey PNG as large as the scan; empty where the model has none.
    """

    label: str
    probabilities: dict[str, float]
    flags: dict[str, bool]
    prediction_set: tuple[str, ...]
    abstain: bool
    abstain_reason: str
    model_version: str
    data_version: str
    heat_map: bytes


@dataclasses.dataclass(frozen=True)
class Outline:
    """Where the served segmenter sees a lesion in one image.

    Attributes:
        mask: a PNG as large as the scan, white where a lesion is.
        lesions: how many regions that are.
        area_share: of the scan, 0 to 1.
        taller_than_wide, circularity: of the largest region; None where there is none.
        abstain: whether the model knows no such images, so that its outline must not be shown.
        abstain_reason: why, a sentence.
        model_version: as `breast-ultrasound-segmenter/3`.
    """

    mask: bytes
    lesions: int
    area_share: float
    taller_than_wide: float | None
    circularity: float | None
    abstain: bool
    abstain_reason: str
    model_version: str


@dataclasses.dataclass(frozen=True)
class Identity:
    """Which version answers now, and the MLflow run that it comes from; empty where the server does not say."""

    model_version: str = ""
    run_id: str = ""
    experiment_id: str = ""


class Server:
    """A server of the model.

    Args:
        url: its address, without /invocations.
        token: the bearer token that it asks for, if any. It is sent in a header and stands in no message.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.session = requests.Session()
        self.session.trust_env = False  # no proxy and no .netrc comes between the page and the server
        if token:
            self.session.headers["Authorization"] = f"Bearer {token}"

    def identity(self) -> Identity:
        """Ask which version answers. A server that does not tell, as MLflow's own, has an empty identity.

        Raises:
            ServerError: nobody answers, or no model is loaded.
        """
        response = self._send("GET", "/ready", LOOK)
        found = _parsed(response)
        if response.status_code in (404, 405):
            return Identity()
        if response.status_code != 200:
            raise self._error(response)
        if not isinstance(found, dict):
            return Identity()
        told = {field.name: str(found[field.name]) for field in dataclasses.fields(Identity) if field.name in found}
        return Identity(**told)

    def answer(self, content: bytes) -> Answer:
        """Ask a classifier about the bytes of a PNG, JPEG or DICOM file, with the heat map.

        Raises:
            ImageError: the server does not take this image.
            ServerError: it answers to no image.
        """
        return self._asked(content, {"explain": True}, _answer)

    def outline(self, content: bytes) -> Outline:
        """Ask a segmenter, as `answer` asks a classifier."""
        return self._asked(content, {}, _outline)

    def _asked(self, content: bytes, parameters: dict[str, bool], read: Callable[[dict[str, Any]], T]) -> T:
        text = base64.b64encode(content).decode()
        body = {"dataframe_split": {"columns": ["image"], "data": [[text]]}, "params": parameters}
        response = self._send("POST", "/invocations", TIMEOUT, body)
        if response.status_code in (400, 413, 422):
            raise ImageError(words.refused(_message(response)))
        if response.status_code != 200:
            raise self._error(response)
        found = _parsed(response)
        try:
            (row,) = found["predictions"]
            return read(row)
        except (KeyError, TypeError, ValueError):
            raise ServerError(words.strange(self.url)) from None

    def _send(self, method: str, path: str, timeout: tuple[float, float], body: Any = None) -> requests.Response:
        try:
            # A redirect is not followed: image and token go to the address that was set, and nowhere else.
            return self.session.request(method, f"{self.url}{path}", json=body, timeout=timeout, allow_redirects=False)
        except requests.exceptions.SSLError:
            raise ServerError(words.untrusted(self.url)) from None
        except requests.ReadTimeout:
            raise ServerError(words.too_slow(self.url, timeout[1])) from None
        except requests.RequestException:
            raise ServerError(words.down(self.url)) from None

    def _error(self, response: requests.Response) -> ServerError:
        return ServerError(words.unanswered(self.url, response.status_code, _message(response)))


def _parsed(response: requests.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _message(response: requests.Response) -> str:
    found = _parsed(response)
    return str(found.get("message", "")).strip() if isinstance(found, dict) else ""


def _outline(row: dict[str, Any]) -> Outline:
    """Read a row of a segmenter; raises as `_answer`."""
    measures = {name: None if row[name] is None else float(row[name]) for name in ("taller_than_wide", "circularity")}
    if not isinstance(row["abstain"], bool) or not all(
        isinstance(row[key], str) for key in ("abstain_reason", "model_version")
    ):
        raise TypeError
    return Outline(
        mask=base64.b64decode(row["mask"], validate=True),
        lesions=int(row["lesions"]),
        area_share=float(row["lesion_area_share"]),
        abstain=row["abstain"],
        abstain_reason=row["abstain_reason"],
        model_version=row["model_version"],
        **measures,
    )


def _answer(row: dict[str, Any]) -> Answer:
    """Read a row.

    Raises:
        KeyError, TypeError, ValueError: it is not what the contract of the served model says.
    """
    probabilities = {key.removeprefix("p_"): float(p) for key, p in row.items() if key.startswith("p_")}
    texts = {key: row[key] for key in TEXTS}
    chosen = tuple(row["prediction_set"])
    if not all(isinstance(text, str) for text in texts.values()) or texts["label"] not in probabilities:
        raise ValueError
    if not set(chosen) <= probabilities.keys() or not math.isclose(sum(probabilities.values()), 1, abs_tol=0.01):
        raise ValueError
    flags = {key.removesuffix("_flag"): bool(value) for key, value in row.items() if key.endswith("_flag")}
    if not flags.keys() <= probabilities.keys():
        raise ValueError
    if not isinstance(row["abstain"], bool):  # any text would count as true
        raise TypeError
    return Answer(
        probabilities=probabilities,
        flags=flags,
        prediction_set=chosen,
        abstain=row["abstain"],
        heat_map=base64.b64decode(row.get("heat_map", ""), validate=True),
        **texts,
    )
