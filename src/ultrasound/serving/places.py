"""Who is computed now, and who waits: never more at once than there are places, and a queue with an end."""

from __future__ import annotations

import asyncio
from collections import deque

from .bodies import RETRY_AFTER, GoneError, Receive, RefusalError


class Places:
    """The places of requests that are computed, and the queue before them, first come first served."""

    def __init__(self, at_once: int, queue: int) -> None:
        self.at_once = self.free = at_once
        self.queue = queue
        self.waiting: deque[asyncio.Future[None]] = deque()

    def require_room(self) -> None:
        """Refuse with 429 if all places are taken and the queue is full."""
        if not self.free and len(self.waiting) >= self.queue:
            raise RefusalError(429, "The server is busy: try again.", RETRY_AFTER)

    async def take(self, receive: Receive) -> None:
        """Wait for a place; `give` it back.

        Raises:
            RefusalError: 429, the queue is full.
            GoneError: the client left meanwhile.
        """
        self.require_room()
        if self.free:
            self.free -= 1
            return
        place = asyncio.get_running_loop().create_future()
        self.waiting.append(place)
        left = asyncio.ensure_future(receive())  # its body is complete: nothing but its end can come
        try:
            await asyncio.wait({place, left}, return_when=asyncio.FIRST_COMPLETED)
            if left.done():
                raise GoneError
        except BaseException:
            if place.done():
                self.give()
            else:
                self.waiting.remove(place)
            raise
        finally:
            left.cancel()

    def give(self) -> None:
        """Give a place back: to the first that waits."""
        if self.waiting:
            self.waiting.popleft().set_result(None)
        else:
            self.free += 1
