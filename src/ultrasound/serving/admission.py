"""What is decided by the headers of a request alone, before its body is read."""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import MutableMapping
from typing import Any

from . import bodies
from .bodies import RefusalError

Scope = MutableMapping[str, Any]

JSON = b"application/json"
OPEN_PATHS = ("/health", "/ready")  # for probes, without a token
METHODS = {
    "/invocations": ("POST",),
    **dict.fromkeys(("/health", "/ping", "/ready", "/version", "/metrics", "/openapi.json"), ("GET", "HEAD")),
}
ONCE = (b"host", b"content-type", b"content-encoding", b"authorization", b"content-length")
LONGEST_LENGTH = 12  # digits
CHALLENGE = (b"www-authenticate", b"Bearer")


class Admission:
    """Who may ask for what.

    A page of a stranger's name, pointed to this machine's address, runs in a browser that reaches this server. So the
    name in the header Host must be one of ours. Open to other machines, any address will do, because only names can be
    pointed elsewhere; with a token any name will, because that page does not know it.
    """

    def __init__(self, bound: str, token: str | None) -> None:
        self.token = token.encode() if token else b""
        self.is_wide = not is_loopback(bound)
        self.any_name = self.is_wide and bool(token)
        self.names = {"localhost", bound.lower(), *([socket.gethostname().lower()] if self.is_wide else [])}

    def require(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Refuse a request to another host (421), without the token (401), to nothing (404), in a wrong way (405)."""
        path, method = scope["path"], scope["method"]
        if not self._is_ours(headers.get(b"host", b"")):
            raise RefusalError(421, "The server does not go by the name in the header Host.")
        if self.token and path not in OPEN_PATHS:
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            fits = hmac.compare_digest(token.strip(), self.token)
            if scheme.lower() != b"bearer" or not fits:
                raise RefusalError(401, "The header Authorization needs the right bearer token.", CHALLENGE)
        if path not in METHODS:
            raise RefusalError(404, "There is nothing at this path; /openapi.json lists what there is.")
        if method not in METHODS[path]:
            allowed = ", ".join(METHODS[path])
            raise RefusalError(405, f"This path takes {allowed}.", (b"allow", allowed.encode()))

    def _is_ours(self, header: bytes) -> bool:
        name = re.sub(r":\d*$", "", header.decode("latin-1")).strip("[]").lower()
        return self.any_name or name in self.names or is_loopback(name) or (self.is_wide and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(name: str) -> bool:
    """Whether only this machine goes by a name or address."""
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """The headers by name; one that decides something must not stand there twice (400)."""
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in ONCE and name in headers:
            raise RefusalError(400, f"The request has the header {name.decode()} twice.")
        headers[name] = value
    return headers


def require_json(headers: dict[bytes, bytes]) -> None:
    """Refuse a body by what its headers say of it: its type (415), its coding (415), its length (413)."""
    kind, _, charset = headers.get(b"content-type", b"").lower().replace(b" ", b"").partition(b";")
    if kind != JSON or charset.replace(b'"', b"") not in (b"", b"charset=utf-8"):
        raise RefusalError(415, "The request must have the content type application/json, in UTF-8.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RefusalError(415, "The request must not be compressed.")
    length = headers.get(b"content-length", b"0")
    if len(length) > LONGEST_LENGTH or int(length) > bodies.LARGEST:
        raise bodies.too_large()
