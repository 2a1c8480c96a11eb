"""The process that serves one version of the model, started by `fleet`: the model behind the guard.

It runs the model's code, which is a package `ultrasound` of its own in the model's folder. So this package is loaded
under another name there (`BOOT` in `fleet`), and imports nothing of `ultrasound`.

Its parent speaks to it over a socket, a line a word: the settings first, then `drain` or `stop`. It answers `ready`, or
`failed` with a reason. The end of that socket is the end of the parent, and of this process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import prometheus_client
import uvicorn

from . import TOKEN, openapi
from .accounts import Accounts, be_discreet, log
from .bodies import Shape, parse
from .connections import BACKLOG, HEADERS, KEEP_ALIVE, Connection
from .guard import Gone, Guard, Rules

SWITCH = 0.0005  # seconds until a thread gives way to another; Python's 5 ms are a quarter of an answer
CLEAR_UP = "import shutil, sys; shutil.rmtree(sys.argv[1], ignore_errors=True)"
EXAMPLE = "serving_input_example.json"  # MLflow writes it beside a model


class UnfitError(Exception):
    """This model cannot be served; the text says why, in words for the log."""


def main(control: int, listening: int) -> None:
    """Serve until the parent says otherwise.

    Args:
        control: file descriptor of the socket that the parent speaks over.
        listening: file descriptor of the socket that clients connect to.
    """
    for number in (control, listening):
        os.set_inheritable(number, False)  # what clears up at the end must not hold the port
    parent = socket.socket(fileno=control)
    words = parent.makefile("r", encoding="utf-8")
    settings = json.loads(words.readline())
    told: dict[str, Callable[[], object]] = {}
    threading.Thread(target=_listen, args=(words, settings["root"], told), daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # below it are the clients' errors, which are counted
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    token = os.environ.pop(TOKEN, "") or None
    try:
        guard = _load(Path(settings["folder"]), settings, token)
        asyncio.run(_serve(guard, settings, socket.socket(fileno=listening), parent, told))
    except Exception as error:  # whatever a model's code raises
        reason = str(error) if isinstance(error, UnfitError) else type(error).__name__
        parent.sendall(f"failed {reason}\n".encode())
    sys.stderr.flush()
    os._exit(1)


def _listen(words: Any, root: str, told: dict[str, Callable[[], object]]) -> None:
    """Do what the parent says; without a parent, clear up and end."""
    with suppress(OSError):  # a parent that was killed before it read all may leave a reset instead of an end
        for word in words:
            act = told.get(word.strip())
            if act is None:  # nothing is served yet
                os._exit(0)
            act()
    # A model that is being loaded writes compiled code into the folder, import by import. So what clears up takes this
    # process's place: no other thread is left that could write.
    try:
        os.execv(sys.executable, [sys.executable, "-IS", "-c", CLEAR_UP, root])  # noqa: S606  (no shell is wanted)
    finally:
        os._exit(1)


def _load(folder: Path, settings: dict[str, Any], token: str | None) -> Guard:
    import mlflow  # takes a second, in which the parent is listened to

    model = mlflow.pyfunc.load_model(str(folder))
    _require_own_code(folder)
    signature = model.metadata.signature
    inputs = signature.inputs.to_dict() if signature is not None else []
    if len(inputs) != 1 or inputs[0].get("type") != "string" or "name" not in inputs[0]:
        raise UnfitError("its signature is not one column of strings")
    try:
        answering = model.unwrap_python_model()
    except mlflow.MlflowException:
        raise UnfitError("it is none of this project's models") from None
    known = signature.params.to_dict() if signature.params else []
    defaults = {item["name"]: item["default"] for item in known}
    shape = Shape(inputs[0]["name"], {item["name"]: item["type"] for item in known})
    version = settings["model_version"]
    outputs = [column for column in (signature.outputs.to_dict() if signature.outputs else []) if "name" in column]
    described = openapi.document(version, shape, outputs, bool(token))
    rules = Rules(settings["host"], settings["at_once"], settings["queue"], settings["patience"], token)

    def score(images: list[str], parameters: dict[str, Any], is_gone: Gone) -> tuple[int, str]:
        # As MLflow's app does it, but for its web framework, its parser, the check of the signature, which
        # `bodies.parse` has made, and its slower way to write JSON: see docs/decisions/0014.
        try:
            found = answering.predict(is_gone, {shape.column: images}, defaults | parameters)
        except mlflow.MlflowException as error:
            return error.get_http_status_code(), error.message
        return 200, json.dumps({"predictions": found}, allow_nan=False)

    accounts = Accounts(version, settings["run_id"], settings["experiment_id"])
    return Guard(score, rules, shape, accounts, json.dumps(described).encode(), mlflow.__version__)


def _require_own_code(folder: Path) -> None:
    """Refuse to serve with code of this machine where the model has brought its own."""
    code = folder / "code"
    for path in code.iterdir() if code.is_dir() else ():
        module = sys.modules.get(path.stem)
        if module is not None and not Path(str(module.__file__)).resolve().is_relative_to(code.resolve()):
            raise UnfitError(f"its own code of {path.stem} was not used")


async def _serve(
    guard: Guard, settings: dict[str, Any], listening: socket.socket, parent: socket.socket,
    told: dict[str, Callable[[], object]],
) -> None:  # fmt: skip
    await _try(guard, Path(settings["folder"]) / EXAMPLE)
    Connection.patience = settings["patience"]
    server = uvicorn.Server(
        uvicorn.Config(
            guard, http=Connection, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            proxy_headers=False, timeout_keep_alive=KEEP_ALIVE, h11_max_incomplete_event_size=HEADERS, backlog=BACKLOG,
            timeout_graceful_shutdown=settings["drain"],
        )
    )  # fmt: skip
    be_discreet()
    sys.setswitchinterval(SWITCH)
    loop = asyncio.get_running_loop()
    gc.collect()
    gc.freeze()  # what the model and its libraries hold is no garbage to look for
    serving = asyncio.create_task(server.serve([listening]))
    while not server.started:
        if serving.done():
            raise UnfitError("its server did not start")
        await asyncio.sleep(0.01)
    tasks = set()

    def drain() -> None:
        tasks.add(asyncio.create_task(_drain(guard, server)))

    def stop() -> None:
        guard.draining = server.should_exit = True

    told["drain"] = lambda: loop.call_soon_threadsafe(drain)
    told["stop"] = lambda: loop.call_soon_threadsafe(stop)
    parent.sendall(b"ready\n")
    await serving
    sys.stderr.flush()
    os._exit(0)  # threads that still compute for a client that has gone are not waited for


async def _try(guard: Guard, example: Path) -> None:
    """Ask the model for its own example, so that no client waits for what is made at the first request."""
    if not example.is_file():
        return
    try:
        await guard.predict(*parse(example.read_bytes(), guard.shape), lambda: False)
    except Exception as error:
        raise UnfitError(f"it does not answer its own example ({type(error).__name__})") from None


async def _drain(guard: Guard, server: uvicorn.Server) -> None:
    """Accept no more connections, answer on those that are open, and end with the last of them.

    Every answer says that the connection closes; one that nobody uses is closed by its keep-alive timer. So a client
    that keeps a connection does not lose a request.
    """
    guard.draining = True
    for listener in server.servers:
        listener.close()
    log("draining", version=guard.accounts.model_version)
    while server.server_state.connections or server.server_state.tasks:
        await asyncio.sleep(0.05)
    server.should_exit = True
