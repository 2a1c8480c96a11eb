"""Which process works on a run, and whether it lives: tags of the run, renewed while it goes on."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlflow
import psutil

PROCESS_TAG, BEAT_TAG = "process", "heartbeat"
BEAT_SECONDS = 30
SILENT_SECONDS = 600  # after which a process of another machine counts as gone; generous, as clocks differ
BOOT = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")  # containers of one machine number their processes apart


def marks() -> dict[str, str]:
    """Tags for a run that this process begins to work on."""
    me = psutil.Process()
    return {PROCESS_TAG: f"{_machine()} {me.pid} {me.create_time():.2f}", BEAT_TAG: f"{time.time():.0f}"}


@contextmanager
def beating(run_id: str) -> Iterator[None]:
    """Renew the time at which a run was last seen alive, until the block ends."""
    client = mlflow.MlflowClient()
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            # A store that does not answer just now is none of this thread's concern.
            with contextlib.suppress(mlflow.MlflowException):
                client.set_tag(run_id, BEAT_TAG, f"{time.time():.0f}")

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def is_alive(tags: Mapping[str, str]) -> bool:
    """Whether the process that a run's tags name still works; of another machine, by when it was last heard of."""
    machine, pid, created = (*tags.get(PROCESS_TAG, "").split(" "), "", "")[:3]
    silent = time.time() - float(tags.get(BEAT_TAG, "0"))
    if machine != _machine():
        return silent < SILENT_SECONDS
    try:
        process = psutil.Process(int(pid))
        # A clock that was set meanwhile shifts the time of creation, but not the beat.
        is_same = abs(process.create_time() - float(created)) < 1 or silent < 3 * BEAT_SECONDS
        return bool(is_same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def is_gone(process: str) -> bool:
    """Whether a process, as `marks` names it, was one of this machine and has ended."""
    return process.startswith(f"{_machine()} ") and not is_alive({PROCESS_TAG: process})


def sweep() -> None:
    """Close as KILLED the runs that are open though their process is gone."""
    for run in mlflow.search_runs(
        filter_string=f"attributes.status = 'RUNNING' AND tags.{PROCESS_TAG} LIKE '%'",
        search_all_experiments=True, output_format="list",
    ):  # fmt: skip
        if not is_alive(run.data.tags):
            close(run.info.run_id)


def close(run_id: str) -> None:
    """Close a run as KILLED whose process is gone, unless it ended before."""
    client = mlflow.MlflowClient()
    if client.get_run(run_id).info.status != "RUNNING":
        return
    client.set_tag(run_id, "failure", "its process was gone: killed, or its machine stopped")
    client.set_terminated(run_id, "KILLED")


def _machine() -> str:
    boot = BOOT.read_text().strip() if BOOT.exists() else f"{psutil.boot_time():.0f}"
    namespace = str(NAMESPACE.readlink()) if os.path.lexists(NAMESPACE) else ""
    return f"{socket.gethostname()}/{boot}/{namespace}".replace(" ", "_")
