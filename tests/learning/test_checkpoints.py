"""Checkpoints on a real disk: whole or not at all, also where there is no room."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ultrasound.learning.checkpoints import CheckpointError, Checkpoints


def state(epoch, megabytes=0):
    return {"epoch": epoch, "weights": torch.full((3,), float(epoch)), "large": torch.zeros(megabytes * 250_000)}


def test_the_last_two_are_kept_and_the_newest_is_loaded(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.load() is None
    for epoch in range(1, 12):
        checkpoints.save(epoch, state(epoch))
    checkpoints.wait()
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["epoch-00010.pt", "epoch-00011.pt"]
    assert Checkpoints(tmp_path / "run").load()["epoch"] == 11


def test_what_is_saved_is_what_was_there_when_it_was_saved(tmp_path):
    weights = torch.zeros(1000, 1000)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"weights": weights, "nested": [{"weights": weights}]})
    weights += 1  # training goes on
    checkpoints.wait()
    loaded = checkpoints.load()
    assert float(loaded["weights"].max()) == float(loaded["nested"][0]["weights"].max()) == 0


def test_a_damaged_file_gives_way_to_the_one_before_with_a_word(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2):
        checkpoints.save(epoch, state(epoch, megabytes=1))
    checkpoints.wait()
    newest = tmp_path / "epoch-00002.pt"
    newest.write_bytes(newest.read_bytes()[:5000])
    assert checkpoints.load()["epoch"] == 1
    assert "epoch-00002.pt cannot be read" in capsys.readouterr().out


def test_a_process_that_is_killed_while_it_writes_leaves_only_whole_files(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from ultrasound.learning.checkpoints import Checkpoints\n"
        "checkpoints = Checkpoints(Path(sys.argv[1])); big = torch.zeros(10_000_000)\n"
        "for epoch in range(1, 1000): checkpoints.save(epoch, {'epoch': epoch, 'big': big + epoch})"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    while not any(file.stem > "epoch-00001" for file in tmp_path.glob("epoch-*.pt")):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.05)
    process.kill()
    process.wait()
    whole = list(tmp_path.glob("epoch-*.pt"))
    assert whole
    for file in whole:
        loaded = torch.load(file, weights_only=True)
        assert float(loaded["big"].min()) == float(loaded["big"].max()) == loaded["epoch"]


def test_a_process_that_is_stopped_as_its_writer_starts_ends(tmp_path):
    code = (
        "import os, signal, sys, threading, torch; from pathlib import Path\n"
        "from ultrasound.errors import raise_on_signals; from ultrasound.learning.checkpoints import Checkpoints\n"
        "checkpoints, start = Checkpoints(Path(sys.argv[1])), threading.Thread.start\n"
        "def stopped(thread): start(thread); os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread.start = stopped; raise_on_signals(); checkpoints.save(1, {'epoch': 1})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert "stopped by SIGTERM" in done.stderr
    assert Checkpoints(tmp_path).load() == {"epoch": 1}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(small_disk: Path):
    checkpoints = Checkpoints(small_disk / "run")
    checkpoints.save(1, state(1, megabytes=2))
    checkpoints.save(2, state(2, megabytes=2))
    checkpoints.save(3, state(3, megabytes=6))
    said = r"epoch 3 cannot be written to .*small/run \(\d MB are free\): No space left on device. Make room"
    with pytest.raises(CheckpointError, match=said):
        checkpoints.wait()
    assert Checkpoints(small_disk / "run").load()["epoch"] == 2
    assert not list((small_disk / "run").glob("*.unfinished"))
