"""The parent of the server's processes: it follows the alias, and there is always one that answers.

It holds the listening socket, which every child inherits: between two children, and while one that died is replaced,
connections wait in the system's queue instead of being refused. A new version is loaded beside the old one, which then
answers what it has been asked, and ends.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from ultrasound.errors import InputError
from ultrasound.sections import Serve
from ultrasound.serving import TOKEN
from ultrasound.serving.accounts import log
from ultrasound.serving.admission import is_loopback
from ultrasound.serving.child import Child, start
from ultrasound.serving.connections import BACKLOG, KEEP_ALIVE
from ultrasound.tracking import serving_versions
from ultrasound.tracking.serving_versions import AbsentError, Version

LOADING = 180.0  # seconds until a version must have been loaded
AGAIN = 60.0  # seconds until a version that failed is tried again
LONGEST_BACKOFF = 30.0  # seconds before a child that keeps dying is started again
STEADY = 60.0  # seconds after which a child's death is no failure to start
TICK = 0.5  # seconds


def serve(name: str, settings: Serve) -> None:
    """Serve the version that the alias points to until a signal raises; returns never.

    Raises:
        InputError: there is no such version, it does not load, or the address cannot be listened to.
    """
    serving_versions.answer_soon()
    token = os.environ.get(TOKEN, "")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"{TOKEN} must be ASCII without spaces")
    version = serving_versions.resolve(name, settings.alias)
    listening = listen(settings.host, settings.port)
    if not token and not is_loopback(settings.host):
        log("open", host=settings.host, reason=f"whoever reaches this address is answered: set {TOKEN}")
    root = Path(tempfile.mkdtemp(prefix="ultrasound-serve-"))
    fleet = Fleet(name, settings, listening, root)
    try:
        fleet.run(version)
    finally:
        try:
            fleet.stop()
        finally:
            shutil.rmtree(root, ignore_errors=True)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens already: who connects before a model is loaded waits.

    Raises:
        InputError: the address is taken, or is none of this machine's.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port} ({error.strerror}): set serve.host or serve.port"
        ) from None
    return listening


class Fleet:
    """One child that serves, perhaps one that will, and those that finish."""

    def __init__(self, name: str, settings: Serve, listening: socket.socket, root: Path) -> None:
        self.name = name
        self.settings = settings
        self.listening = listening
        self.root = root
        self.current: Child | None = None
        self.next: Child | None = None
        self.leaving: list[Child] = []
        self.deaths = 0
        self.starts_at: float | None = None  # when a child that died is started again
        self.fetched: list[tuple[Version, Path, Path]] = []  # by the watching thread: version, folder, model
        self.failed: dict[str, float] = {}  # version -> when it may be tried again
        self.wanted = ""  # by the watching thread: the version that the alias pointed to when it was last seen
        self.lock = threading.Lock()

    def run(self, version: Version) -> None:
        """Serve this version first, then whatever the alias points to; returns never."""
        self.wanted = version.number
        version, folder = serving_versions.with_experiment(version), self._folder(version)
        self.current = self._start(version, folder, serving_versions.fetch(version, folder))
        while not self.current.is_ready:
            self._wait()
            if not self.current.is_alive:
                raise InputError(f"{version.label} cannot be served: {self.current.reason or 'its process died'}")
            self._end_if_stuck(self.current)
        self._say_serving()
        threading.Thread(target=self._watch, daemon=True).start()
        while True:
            self._wait()
            self._replace_if_dead()
            self._move_on()
            self._clear()

    def stop(self) -> None:
        """Let all children finish within `serve.drain`, and end those that do not."""
        self.listening.close()
        children = [child for child in (self.current, self.next, *self.leaving) if child and child.is_alive]
        for child in children:
            child.tell("stop")
        end = time.monotonic() + self.settings.drain + 1
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.1, end - time.monotonic()))
            child.bury()
        log("stopped")

    def _folder(self, version: Version) -> Path:
        return self.root / f"{version.number}-{time.monotonic_ns()}"

    def _start(self, version: Version, folder: Path, model: Path) -> Child:
        settings = self.settings.model_dump(include={"host", "at_once", "queue", "patience", "drain"})
        return start(version, folder, model, self.listening, {"root": str(self.root), **settings})

    def _wait(self) -> None:
        """Until a child says something, or a moment."""
        children = [child for child in (self.current, self.next, *self.leaving) if child and child.is_alive]
        by_socket = {child.control: child for child in children}
        for ready in multiprocessing.connection.wait(list(by_socket), TICK):
            by_socket[ready].hear()  # type: ignore[index]

    def _replace_if_dead(self) -> None:
        """Start the child anew that died while it served."""
        child = self.current
        assert child is not None
        self._end_if_stuck(child)
        now = time.monotonic()
        if child.is_alive:
            return
        if self.starts_at is None:
            self.deaths = 0 if now - child.since > STEADY else self.deaths + 1
            pause = min(2.0 ** (self.deaths - 1), LONGEST_BACKOFF) if self.deaths > 1 else 0
            self.starts_at = now + pause
            log("died", version=child.version.label, code=child.process.returncode, starts_again_in=pause)
        if now >= self.starts_at:
            self.starts_at = None
            self.current = self._start(child.version, child.folder, child.model)

    def _move_on(self) -> None:
        """Load a version that the alias has moved to, and let it take over once it is ready and still wanted."""
        if self.next is None:
            with self.lock:
                if self.fetched:
                    self.next = self._start(*self.fetched.pop())
            return
        self._end_if_stuck(self.next)
        if self.next.is_alive and self.next.version.number != self.wanted:  # withdrawn while it was loaded
            log("not served", version=self.next.version.label, reason="the alias has moved on")
            self.next.bury()
            self.leaving.append(self.next)
            self.next = None
            return
        if self.next.is_ready and self.next.is_alive:
            assert self.current is not None
            self.current.tell("drain")
            self.current.since = time.monotonic()
            self.leaving.append(self.current)
            self.current, self.next, self.deaths = self.next, None, 0
            self._say_serving()
        elif not self.next.is_alive:
            self._give_up(self.next.version, self.next.reason or "its process died")
            self.leaving.append(self.next)
            self.next = None

    def _clear(self) -> None:
        """Remove the files of children that have ended."""
        longest = KEEP_ALIVE + self.settings.patience + LOADING
        for child in list(self.leaving):
            if child.is_alive and time.monotonic() - child.since > longest:
                child.bury()
            if not child.is_alive:
                self.leaving.remove(child)
                shutil.rmtree(child.folder, ignore_errors=True)

    def _end_if_stuck(self, child: Child) -> None:
        if child.is_alive and not child.is_ready and time.monotonic() - child.since > LOADING:
            child.reason = f"it was not loaded within {LOADING:.0f} seconds"
            child.bury()

    def _give_up(self, version: Version, reason: str) -> None:
        assert self.current is not None
        self.failed[version.number] = time.monotonic() + AGAIN
        log("not served", version=version.label, reason=reason, goes_on=self.current.version.label)

    def _say_serving(self) -> None:
        assert self.current is not None
        host, port = self.listening.getsockname()[:2]
        log("serving", version=self.current.version.label, run_id=self.current.version.run_id, host=host, port=port)

    def _watch(self) -> None:
        """Look at the alias, in a thread of its own: a registry far away may take its time."""
        said = ""
        while True:
            time.sleep(self.settings.poll)
            try:
                version = serving_versions.resolve(self.name, self.settings.alias)
                self.wanted, said = version.number, ""
            except InputError as error:
                if isinstance(error, AbsentError):  # what is being loaded was withdrawn; what answers goes on
                    self.wanted = ""
                if str(error) != said:
                    log("alias unknown", reason=str(error))
                    said = str(error)
                continue
            self._fetch(version)

    def _fetch(self, version: Version) -> None:
        with self.lock:
            known = [child.version.number for child in (self.current, self.next) if child]
            is_waiting = bool(self.fetched)
        if is_waiting or version.number in known or time.monotonic() < self.failed.get(version.number, 0):
            return
        version, folder = serving_versions.with_experiment(version), self._folder(version)
        try:
            model = serving_versions.fetch(version, folder)
        except Exception as error:  # a full disk, too: whatever it is, the alias is followed further
            shutil.rmtree(folder, ignore_errors=True)
            self._give_up(version, str(error) if isinstance(error, InputError) else type(error).__name__)
            return
        with self.lock:
            self.fetched.append((version, folder, model))
