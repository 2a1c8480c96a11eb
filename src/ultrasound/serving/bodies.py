"""The body of a request: read within limits, and parsed, or refused with one sentence.

A good body is a few long strings (base64) in a small frame. So the strings are skipped at the speed of `memchr`, the
frame is parsed, and the whole only if the frame is harmless: 300 kB cost microseconds, and millions of brackets or keys
are refused before a parser makes objects of them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LARGEST = 12_000_000  # bytes of one body: an image of 8 MB in base64, and some room
ALL_TOGETHER = 64_000_000  # bytes of all bodies that are held at once
LARGEST_FRAME = 16_384  # bytes outside of the strings
MOST_STRINGS = 256
MOST_BRACKETS = 256  # and so the deepest nesting, far below what Python's parser takes
RETRY_AFTER = (b"retry-after", b"1")  # seconds
LONG = 64  # characters; longer strings are no name of anything

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")  # of MLflow's scoring protocol
KINDS: dict[str, tuple[type, ...]] = {
    "boolean": (bool,), "string": (str,), "integer": (int,), "long": (int,), "float": (int, float),
    "double": (int, float),
}  # fmt: skip

Receive = Callable[[], Awaitable[Any]]


class RefusalError(Exception):
    """A request that gets no 200; `status` is HTTP's, the text is the sentence that the client reads."""

    def __init__(self, status: int, sentence: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers


class GoneError(Exception):
    """The client has left: there is nobody to answer."""


@dataclass(frozen=True)
class Shape:
    """What the model takes.

    Attributes:
        column: the one column, of strings.
        parameters: name -> MLflow's type, of what may stand under `params`.
    """

    column: str
    parameters: dict[str, str]


class Memory:
    """Bytes that all bodies hold together, from their arrival until they are answered."""

    def __init__(self, most: int = ALL_TOGETHER) -> None:
        self.most = most
        self.held = 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes so many more bytes for one body; all of them are free again at the end.

        Raises:
            RefusalError: 503, there is no room for them.
        """
        mine = 0

        def take(size: int) -> None:
            nonlocal mine
            mine += size
            self.held += size
            if self.held > self.most:
                raise RefusalError(503, "The server holds as many requests as it has room for: try again.", RETRY_AFTER)

        try:
            yield take
        finally:
            self.held -= mine


async def read(receive: Receive, take: Callable[[int], None], patience: float) -> bytes:
    """Read a body.

    Args:
        take: called with the size of every piece that arrives.
        patience: seconds until it must have arrived.

    Raises:
        RefusalError: it is too slow (408) or too large (413).
        GoneError: the client left before the end of it.
    """
    pieces = []
    size = 0
    try:
        async with asyncio.timeout(patience):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise GoneError
                piece = message.get("body", b"")
                size += len(piece)
                if size > LARGEST:
                    raise too_large()
                take(len(piece))
                pieces.append(piece)
                if not message.get("more_body", False):
                    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    except TimeoutError:
        raise RefusalError(408, f"The request did not arrive within {patience:g} seconds.") from None


def too_large() -> RefusalError:
    """What is said of a body beyond `LARGEST`."""
    return RefusalError(413, f"The request is larger than {LARGEST // 1_000_000} MB.")


def parse(body: bytes, shape: Shape) -> tuple[list[str], dict[str, Any]]:
    """Read a body in one of the JSON forms of MLflow's scoring protocol.

    What long strings hold is not looked at: whether they are images is for the model to say.

    Returns:
        The string of each row, and the parameters.

    Raises:
        RefusalError: 400, it has none of these forms, or holds anything but one string a row and known parameters.
    """
    try:
        if not body.isascii():
            body.decode("utf-8")
        content = json.loads(_frame(body), object_pairs_hook=_without_doubles, parse_constant=_no_number)
        whole = json.loads(body)  # as harmless as its frame
    except (ValueError, RecursionError):  # UnicodeDecodeError, JSONDecodeError and integers without end are ValueErrors
        raise _bad("The request is not valid JSON.") from None
    forms = [name for name in FORMS if name in content] if isinstance(content, dict) else []
    if len(forms) != 1 or not content.keys() <= {forms[0], "params"}:
        raise _bad(f"The request must be a JSON object with one of {', '.join(FORMS)}, and perhaps params.")
    parameters = content.get("params") or {}
    _check_parameters(parameters, shape.parameters)
    rows = _rows(forms[0], whole[forms[0]], shape.column)
    if not rows:
        raise _bad("The request holds no image.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, str):
            raise _bad(f"Image {number} must be a base64 string.")
        if not row.isascii():  # one wide character would make each of the string take four bytes while it waits
            raise _bad(f"Image {number} is not valid base64.")
    return rows, parameters


def _frame(body: bytes) -> str:
    """The JSON text with every long string replaced by an empty one."""
    parts = []
    size = at = 0
    for _ in range(MOST_STRINGS + 1):
        start = body.find(b'"', at)
        part = body[at : start if start >= 0 else len(body)]
        size += len(part)
        if size > LARGEST_FRAME:
            raise _bad("The request must hold images as base64 strings, and little else.")
        parts.append(part)
        if start < 0:
            break
        end = body.find(b'"', start + 1)
        if end < 0 or body[end - 1] == ord("\\"):  # base64 and names hold no quotes
            raise _bad("The request is not valid JSON, or it holds quotes inside a string.")
        parts.append(body[start : end + 1] if end - start <= LONG else b'""')
        at = end + 1
    else:
        raise _bad(f"The request holds more than {MOST_STRINGS} strings.")
    frame = b"".join(parts)
    if frame.count(b"[") + frame.count(b"{") > MOST_BRACKETS:
        raise _bad(f"The request holds more than {MOST_BRACKETS} lists and objects.")
    return frame.decode("utf-8")


def _rows(form: str, content: Any, column: str) -> list[Any]:
    """The cells of the one column; whether they are strings is not checked yet."""
    if form == "dataframe_split":
        if not isinstance(content, dict) or not content.keys() <= {"columns", "data", "index"}:
            raise _bad("dataframe_split must be an object with columns and data.")
        rows: Any = content.get("data")
        index: Any = content.get("index")
        if content.get("columns") != [column] or not _is_list_of(list, rows) or any(len(row) != 1 for row in rows):
            raise _bad(f'dataframe_split must have columns ["{column}"], and data with a list of one string a row.')
        if index is not None and (not _is_list_of((int, str), index) or len(index) != len(rows)):
            raise _bad("The index of dataframe_split must have one number or string a row.")
        return [row[0] for row in rows]
    if form == "inputs" and isinstance(content, dict):
        if content.keys() != {column} or not isinstance(content[column], list):
            raise _bad(f"inputs must hold {column}, a list of strings, and nothing else.")
        return list(content[column])
    if _is_list_of(dict, content) and all(row.keys() == {column} for row in content):
        return [row[column] for row in content]
    if form != "dataframe_records" and _is_list_of(str, content):
        return list(content)
    raise _bad(f"{form} must be a list of objects with {column} and nothing else.")


def _check_parameters(given: Any, known: dict[str, str]) -> None:
    if not isinstance(given, dict):
        raise _bad("params must be an object.")
    for name, value in given.items():
        if name not in known:
            raise _bad(f"params may hold {', '.join(known) or 'nothing'}, and nothing else.")
        kinds = KINDS.get(known[name], ())
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise _bad(f"The parameter {name} must be of type {known[name]}.")


def _is_list_of(kind: type | tuple[type, ...], value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise _bad("The request holds a name twice in one object.")
    return content


def _no_number(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are no JSON


def _bad(sentence: str) -> RefusalError:
    return RefusalError(400, sentence)
