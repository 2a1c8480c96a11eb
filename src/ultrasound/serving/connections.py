"""uvicorn's HTTP connections, and how long and how many of them may do nothing."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 256  # connections
HEADERS = 16_384  # bytes of the headers of one request
KEEP_ALIVE = 15  # seconds that a connection is kept between two requests
BACKLOG = 512  # connections that the system keeps until they are accepted
WRITING = 20.0  # seconds that a client may leave an answer unread
TOO_MANY = b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "Too many connections are open: try again."}'
REJECTED = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\nRetry-After: 1\r\n"
    b"Connection: close\r\n\r\n%b" % (len(TOO_MANY), TOO_MANY)
)


class Connection(H11Protocol):
    """A connection that is closed if the headers of a request do not arrive in time, or an answer is not read.

    Where all connections are taken, a new one takes the place of the one that has been idle for longest.
    """

    patience = 10.0  # seconds from the first byte of a request, or the begin of a connection, to the end of its headers

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.since = self.loop.time()  # when it was made, or its last answer was complete
        self._headers: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered: there are no headers yet."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take one of the places for connections."""
        super().connection_made(transport)
        if len(self.connections) > MOST:
            idle = [other for other in self.connections if isinstance(other, Connection) and other.is_idle]
            oldest = min(idle, key=lambda connection: connection.since)
            if oldest is self:
                transport.write(REJECTED)
            oldest.transport.close()
            self.connections.discard(oldest)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Take what the client sent, and watch whether a request comes of it."""
        super().data_received(data)
        if self._headers is None and self.is_idle:
            self._expect_headers()

    def handle_events(self) -> None:
        """Handle what has arrived; with the headers of a request the watch ends."""
        super().handle_events()
        if self._headers is not None and not self.is_idle:
            self._headers.cancel()
            self._headers = None

    def on_response_complete(self) -> None:
        """Begin to be idle."""
        self.since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """End all watches."""
        for timer in (self._headers, self._writing):
            if timer is not None:
                timer.cancel()
        self._headers = self._writing = None
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads too slowly: watch it."""
        super().pause_writing()
        self._writing = self.loop.call_later(WRITING, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the form of every other error."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer has begun already
            self.transport.close()
            return
        content = json.dumps({"error_code": "BAD_REQUEST", "message": msg}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(content))), ("connection", "close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_headers(self) -> None:
        self._headers = self.loop.call_later(self.patience, self._too_slow)

    def _too_slow(self) -> None:
        self._headers = None
        if self.is_idle:
            self.transport.close()
