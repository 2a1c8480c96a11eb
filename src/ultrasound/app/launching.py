"""Starts the page, and with it a server if asked, and ends them together."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import requests

import ultrasound
from ultrasound import NOTICE
from ultrasound.app import ADDRESS, MISSING, OUTLINES
from ultrasound.errors import InputError
from ultrasound.serving import TOKEN

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page.py")
LARGEST_MB = 9  # of a request; the page itself takes files of 8 MB
SETTINGS = {
    "server.address": HOST,
    "server.headless": "true",
    "server.showEmailPrompt": "false",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": str(LARGEST_MB),
    "browser.gatherUsageStats": "false",
    "browser.serverAddress": HOST,
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",  # what goes wrong inside stands in the log, not on the page
    "client.showErrorLinks": "false",
    "logger.level": "warning",
    "logger.hideWelcomeMessage": "true",
    # Both are set, and no base, so that the page follows what the browser prefers. Links and buttons of one blue.
    "theme.light.primaryColor": "#0068a8",
    "theme.light.linkColor": "#0a58a8",
    "theme.dark.primaryColor": "#56b4e9",
    "theme.dark.linkColor": "#7cbcff",
}
HOSTS = (HOST, "localhost")  # a stranger's page whose name points here is not served
STARTING = 60.0  # seconds until the page must answer
LOADING = 200.0  # seconds until a server of ours must have loaded its model
ENDING = 15.0  # seconds that children are given to end, the server's own time to finish included
TICK = 0.2  # seconds
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def run(
    url: str, port: int, outlines: str | None = None, servers: Mapping[str, Sequence[str]] | None = None,
    missing: str = "",
) -> None:  # fmt: skip
    """Show the page until a signal raises.

    Args:
        url: address of the server that answers.
        port: of the page.
        outlines: address of the segmenter's server, if there is one.
        servers: address -> command that starts a server there, if it is to be started and stopped with the page.
        missing: why there is no server at `url` and will be none; the page says it.

    Raises:
        InputError: the port is taken, the address is none, or one of them has ended by itself.
    """
    _require_address("app.url", url)
    if outlines:
        _require_address("app.outlines", outlines)
    _require_free(port)
    environment = os.environ | {
        ADDRESS: url,
        OUTLINES: outlines or "",
        MISSING: missing,
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(ultrasound.__file__).parents[1]), os.environ.get("PYTHONPATH")])
        ),
    }
    settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
    settings += [f"--server.allowedHosts={host}" for host in HOSTS]
    page = [sys.executable, "-m", "streamlit", "run", str(PAGE), f"--server.port={port}", *settings]
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for address, command in (servers or {}).items():
            children[f"the server at {address}"] = _started(command)
        children["the page"] = _started(page, environment)
        _wait_for(f"http://{HOST}:{port}/_stcore/health", STARTING, children)
        for address in servers or {}:
            _wait_for(f"{address}/ready", LOADING, children)
        asks = missing or f"asks {url}"
        print(f"{NOTICE}\nthe page: http://{HOST}:{port} ({asks}); Ctrl-C ends it", flush=True)
        while True:
            _require_alive(children)
            time.sleep(TICK)
    finally:
        _end(children)


def _started(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )  # fmt: skip


def _end_with_parent() -> None:
    """In a child, before its program starts: SIGTERM when the parent is gone, however it went (man 2 prctl)."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _require_address(key: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        is_address = bool(parts.hostname) and parts.port != 0 and not (parts.username or parts.query or parts.fragment)
    except ValueError:
        is_address = False
    if not is_address:
        raise InputError(f"{key} is no address of a server such as http://127.0.0.1:5001 (a token goes into {TOKEN})")


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(f"the page cannot listen on port {port} ({error.strerror}): set app.port") from None


def _wait_for(url: str, seconds: float, children: dict[str, subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + seconds
    with requests.Session() as session:
        session.trust_env = False  # no proxy between a machine and itself
        while time.monotonic() < end:
            _require_alive(children)
            with suppress(requests.RequestException):
                if session.get(url, timeout=2).status_code == 200:
                    return
            time.sleep(TICK)
    raise InputError(f"{url} did not answer within {seconds:.0f} seconds")


def _require_alive(children: dict[str, subprocess.Popen[bytes]]) -> None:
    for name, child in children.items():
        if child.poll() is not None:
            raise InputError(f"{name} has ended by itself (exit code {child.returncode}); its own message stands above")


def _end(children: dict[str, subprocess.Popen[bytes]]) -> None:
    for child in children.values():
        with suppress(ProcessLookupError):
            child.terminate()
    end = time.monotonic() + ENDING
    for child in children.values():
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.1, end - time.monotonic()))
        with suppress(ProcessLookupError):
            child.kill()
        child.wait()
