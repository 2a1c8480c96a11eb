"""Checkpoints of a training: written in the background, whole or not at all, the last two kept.

A file is written under another name, flushed to the disk and renamed, so that one that bears its name is complete,
whatever happened: a kill, a full disk, a power cut.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ultrasound.errors import InputError, signals_wait

KEPT = 2


class CheckpointError(InputError):
    """A checkpoint cannot be written."""


class Checkpoints:
    """The checkpoints of one training, in a folder of their own.

    Args:
        folder: made when the first checkpoint is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Copy the state and write it in the background, as the checkpoint of `epoch`.

        Args:
            state: tensors, numbers, strings, and lists and dicts of them.

        Raises:
            CheckpointError: the checkpoint before this one could not be written.
        """
        self.wait()
        copy = _copied(state)
        with signals_wait():  # between a thread's start and its entry in the pool's books: it would never end
            self._writing = self._pool.submit(self._write, epoch, copy)

    def wait(self) -> None:
        """Wait until what was saved is safe on the disk.

        Raises:
            CheckpointError: it could not be written. Those before it are whole.
        """
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, on the CPU; None where there is none."""
        for file in self._files():
            try:
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # a damaged disk; zip's and pickle's readers each raise their own
                print(f"warning: {file} cannot be read ({type(error).__name__}): taking the checkpoint before it")
                continue
            return state
        return None

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("epoch-*.pt"), reverse=True)

    def _write(self, epoch: int, state: dict[str, Any]) -> None:
        file = self.folder / f"epoch-{epoch:05d}.pt"
        unfinished = file.with_suffix(".unfinished")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as stream:
                torch.save(state, stream)
                stream.flush()
                os.fsync(stream.fileno())
            unfinished.replace(file)
            _flush_folder(self.folder)
        except (OSError, RuntimeError) as error:
            unfinished.unlink(missing_ok=True)
            free = shutil.disk_usage(self.folder if self.folder.exists() else Path.cwd()).free
            raise CheckpointError(
                f"the checkpoint of epoch {epoch} cannot be written to {self.folder} ({free / 1e6:.0f} MB are free): "
                f"{_reason(error)}. Make room and run the same command again: it continues from the epoch before"
            ) from None
        for old in self._files()[KEPT:]:
            old.unlink()


def _copied(state: Any) -> Any:
    """A copy on the CPU: training goes on while it is written."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_copied(value) for value in state]
    return state


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the new name itself
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    # torch's writer raises an error of its own while it handles the system's, which is the one that says why.
    cause = error
    while cause.__context__ and not isinstance(cause, OSError):
        cause = cause.__context__
    return (isinstance(cause, OSError) and cause.strerror) or str(error).splitlines()[0]
