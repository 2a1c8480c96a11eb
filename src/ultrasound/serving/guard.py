"""A guard around an MLflow model: what does not belong there is refused before it costs anything.

A body is read completely before its request takes a place among those that are computed, so who sends slowly keeps
nobody waiting. Every refusal is one sentence, of this package's or of the model's.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from . import bodies
from .accounts import Accounts
from .admission import JSON, METHODS, Admission, Scope, headers_of, require_json
from .bodies import GoneError, Receive, RefusalError
from .places import Places

Send = Callable[[Any], Awaitable[None]]
Gone = Callable[[], bool]
Score = Callable[[list[str], dict[str, Any], Gone], tuple[int, str]]

CODES = {
    400: "BAD_REQUEST", 401: "UNAUTHENTICATED", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 408: "REQUEST_TIMEOUT",
    413: "REQUEST_TOO_LARGE", 415: "UNSUPPORTED_MEDIA_TYPE", 421: "MISDIRECTED_REQUEST", 429: "TOO_MANY_REQUESTS",
    500: "INTERNAL_ERROR", 503: "TEMPORARILY_UNAVAILABLE",
}  # fmt: skip
LINGER = 2.0  # seconds in which a client that still sends can read why it is refused
SENTENCE = re.compile(r"[A-Z0-9][^\n\r\\{}\[\]<>'\"`]{0,299}\.")  # MLflow's own errors hold quotes, brackets, new lines
PATH = re.compile(r"/[^/ ]+/")


@dataclass(frozen=True)
class Rules:
    """How much is let in, as in section `serve` of params.yaml, and the token that is asked for, if any."""

    host: str
    at_once: int
    queue: int
    patience: float
    token: str | None


@dataclass(frozen=True)
class Answer:
    """A whole response."""

    status: int
    content: bytes
    kind: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
    rows: int = 0


class Guard:
    """The ASGI app that is served; `draining` tells it to send clients elsewhere.

    Args:
        score: the model: images, parameters, and whether the client has left -> HTTP status, and JSON or the message of
            an error.
        rules: how much is let in.
        shape: what the model takes.
        accounts: where requests are counted.
        described: the OpenAPI description, JSON.
        mlflow_version: what MLflow's server says at /version.
    """

    def __init__(
        self, score: Score, rules: Rules, shape: bodies.Shape, accounts: Accounts, described: bytes,
        mlflow_version: str,
    ) -> None:  # fmt: skip
        self.score = score
        self.threads = ThreadPoolExecutor(rules.at_once)
        self.rules = rules
        self.shape = shape
        self.accounts = accounts
        self.described = described
        self.mlflow_version = mlflow_version
        self.draining = False
        self.places = Places(rules.at_once, rules.queue)
        self.memory = bodies.Memory()
        self.admission = Admission(rules.host, rules.token)
        accounts.waiting.set_function(lambda: len(self.places.waiting))
        accounts.computing.set_function(lambda: self.places.at_once - self.places.free)
        accounts.bytes.set_function(lambda: self.memory.held)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        path = scope["path"] if scope["path"] in METHODS else "other"
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
        done = [scope["method"] != "POST"]  # whether the body has been read; where there should be none, it is ignored
        status, rows = 499, 0
        self.accounts.open.inc()
        try:
            answer = await self._answer(scope, receive, done)
            await self._send(answer, send, done[0])
            status, rows = answer.status, answer.rows
        except GoneError:
            pass
        finally:
            self.accounts.open.dec()
            self.accounts.close(method, path, status, time.perf_counter() - began, rows)
        if status != 499 and not done[0]:
            await _linger(receive, send)

    async def _answer(self, scope: Scope, receive: Receive, done: list[bool]) -> Answer:
        try:
            headers = headers_of(scope)
            self.admission.require(scope, headers)
            path = scope["path"]
            if path == "/invocations":
                return await self._predictions(headers, receive, done)
            if path == "/ready":
                return self._ready()
            if path == "/metrics":
                return Answer(200, self.accounts.text(), b"text/plain; version=0.0.4; charset=utf-8")
            if path == "/openapi.json":
                return Answer(200, self.described)
            return Answer(200, self.mlflow_version.encode() if path == "/version" else b"\n")  # as MLflow's server
        except RefusalError as refused:
            return _refusal(refused)
        except GoneError:
            raise
        except Exception as error:
            self.accounts.failure(type(error).__name__)
            return _refusal(RefusalError(500, "The model failed on this request."))

    async def _predictions(self, headers: dict[bytes, bytes], receive: Receive, done: list[bool]) -> Answer:
        require_json(headers)
        self.places.require_room()
        with self.memory.share() as take:
            arrived = [await bodies.read(receive, take, self.rules.patience)]
            done[0] = True
            images, parameters = bodies.parse(arrived.pop(), self.shape)  # popped: what waits is not held twice
            await self.places.take(receive)
            try:
                content = await self._computed(images, parameters, receive)
            finally:
                self.places.give()
        return Answer(200, content, rows=len(images))

    async def _computed(self, images: list[str], parameters: dict[str, Any], receive: Receive) -> bytes:
        """`predict`, for as long as the client is there. The place is given back when the work has really ended."""
        gone = threading.Event()
        work = asyncio.ensure_future(self.predict(images, parameters, gone.is_set))
        left = asyncio.ensure_future(receive())  # its body is complete: nothing but its end can come
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                gone.set()
                await asyncio.wait({work})
                work.exception()  # nobody is there to be told
                raise GoneError
            return work.result()
        finally:
            left.cancel()

    async def predict(self, images: list[str], parameters: dict[str, Any], is_gone: Gone) -> bytes:
        """The model's answer, and a sentence of ours instead of an error of MLflow's.

        Args:
            is_gone: whether nobody waits for the answer any more; the model asks before the next image or two.

        Raises:
            RefusalError: 400 or 500.
            Exception: whatever else the model raises.
        """
        loop = asyncio.get_running_loop()
        status, content = await loop.run_in_executor(self.threads, self.score, images, parameters, is_gone)
        if status == 200:
            return content.encode()
        if status != 400:
            self.accounts.failure(f"HTTP {status}")
            raise RefusalError(500, "The model failed on this request.")
        sentence = _sentence(content)
        if sentence is None:
            self.accounts.failure("HTTP 400 without a sentence of the model's")
        raise RefusalError(400, sentence or "The request does not hold what the model takes: images as base64 strings.")

    def _ready(self) -> Answer:
        content = {"ready": not self.draining, **self.accounts.identity}
        return Answer(503 if self.draining else 200, json.dumps(content).encode())

    async def _send(self, answer: Answer, send: Send, done: bool) -> None:
        headers = [
            (b"content-type", answer.kind), (b"content-length", str(len(answer.content)).encode()),
            (b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"), *answer.headers,
        ]  # fmt: skip
        if self.draining or not done:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.content, "more_body": not done})


async def _linger(receive: Receive, send: Send) -> None:
    """End an answer to a client that still sends its body.

    Closed at once, with bytes on their way, the connection would be reset, and the answer lost on the client's side.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _sentence(message: str) -> str | None:
    """The message of an error if it is a sentence of the model's; none if it is MLflow's, which repeats the request."""
    return message if SENTENCE.fullmatch(message) and not PATH.search(message) else None


def _refusal(refused: RefusalError) -> Answer:
    content = json.dumps({"error_code": CODES[refused.status], "message": str(refused)}).encode()
    return Answer(refused.status, content, headers=refused.headers)
