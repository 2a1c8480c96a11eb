"""`make bench`: how fast this project is, beside the limit of the machine and what a user would write instead.

Training, in images/s, by turns in one process, medians and the spread of the turns:
  (a) limit    forward, backward and step of the same network on one batch that lies on the device already
  (b) ours     the project's epoch loop from prepared arrays, everything on: augmentation, metrics, checkpoints
  (c) timm     timm.data's loader on the PNG files with timm's augmentation, and a plain loop, as timm's train.py does
Preparation, in images/s, by turns:
  (d) the preprocess stage against a loop with Pillow in one process, on all images and masks
Start, in seconds:
  (e) `python -m ultrasound --help`, and `dvc repro` where nothing has changed

Needs build/ (run `dvc repro`). Training settings are those of params.yaml, or as `-P train.batch_size=64` says.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import timm.data
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from torch import nn
from tqdm import tqdm

from ultrasound import params as parameters
from ultrasound.commands import VERIFIED
from ultrasound.errors import InputError
from ultrasound.images import catalog, prepared, splitting, verified
from ultrasound.images.loading import Batches
from ultrasound.images.preparation import Preparation
from ultrasound.images.prepared import Prepared
from ultrasound.learning import backbone, fitting, memory, recipe
from ultrasound.learning.backbone import Network
from ultrasound.learning.checkpoints import Checkpoints
from ultrasound.scoring import metrics
from ultrasound.sections import Params

BUILD = Path("build")
Turn = Callable[[], float]  # does some work, returns its speed or its seconds


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="timm model, untrained (default resnet50)")
    parser.add_argument("--size", type=int, default=224, help="side of the images, pixels (default 224)")
    parser.add_argument("--steps", type=int, default=2, help="training steps a turn (default 2; on a GPU take 50)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each (default 5)")
    parser.add_argument(
        "--only", choices=["train", "prepare", "start"], nargs="+", default=["train", "prepare", "start"]
    )
    parser.add_argument(
        "-P", dest="values", action="append", default=[], metavar="KEY=VALUE", help="a parameter, as of `mlflow run`"
    )
    arguments = parser.parse_args()
    try:
        values = {key: yaml.safe_load(value) for key, _, value in (each.partition("=") for each in arguments.values)}
        params = parameters.load(values | {"model.name": arguments.model, "model.weights": "none"})
        table, splits = catalog.read(BUILD / "catalog.csv"), splitting.read(BUILD / "splits.csv")
        preparation = Preparation(**params.preprocess.model_dump() | {"size": arguments.size})
        print(f"{_machine()}; {arguments.model}, {arguments.size} x {arguments.size} pixels")
        if "prepare" in arguments.only:  # first, as the stage itself is no process with a network's memory to fork
            _prepare(table, splits, preparation, arguments.turns)
        if "start" in arguments.only:
            _start(arguments.turns)
        if "train" in arguments.only:
            with tempfile.TemporaryDirectory() as folder:
                data = prepared.write(table, splits, preparation, Path(folder, "prepared"))
                _train(params, data, arguments.steps, arguments.turns)
    except InputError as error:
        sys.exit(f"error: {error}")


def _train(params: Params, data: Prepared, steps: int, turns: int) -> None:
    size = params.train.batch_size if isinstance(params.train.batch_size, int) else memory.LARGEST_BATCH
    untuned: dict[str, tuple[float, float, float]] = {}
    if not torch.cuda.is_available():  # before the next line tells the C library to keep freed memory
        limit = _limit(params, data, Accelerator(cpu=True), size, steps)
        untuned = _by_turns({"limit, memory given back": limit}, turns)
    device = fitting.accelerator(params.train)
    print(f"training on {device.device} in {_precision(device)}, batches of {size}, {steps} steps a turn")
    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            "limit": _limit(params, data, device, size, steps),
            "ours": _ours(params, data, device, size, steps, Path(folder, "checkpoints")),
            "timm": _timm(params, data, device, size, steps, Path(folder, "images")),
        }
        speed = _by_turns(kinds, turns)
    _print(untuned | speed, "images/s")
    ours = speed["ours"][0]
    print(f"ours / limit {ours / speed['limit'][0]:.3f}, ours / timm {ours / speed['timm'][0]:.2f}")


def _network(params: Params) -> Network:
    model = params.model
    return backbone.create(model.name, "none", len(params.data.classes), model.head_width, model.dropout)


def _limit(params: Params, data: Prepared, device: Accelerator, size: int, steps: int) -> Turn:
    network = _network(params).to(device.device).to(memory_format=torch.channels_last).train()
    optimizer = recipe.optimizer(network, params.train, fused=True)
    images = torch.rand(size, 1, *data.images.shape[1:], device=device.device)
    targets = torch.arange(size, device=device.device) % network.classes
    loss_of = nn.CrossEntropyLoss()

    def turn() -> float:
        started = time.perf_counter()
        for _ in range(steps):
            with device.autocast():
                output = network(images)
            loss = loss_of(output.float(), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the device
        return size * steps / (time.perf_counter() - started)

    return turn


def _ours(params: Params, data: Prepared, device: Accelerator, size: int, steps: int, folder: Path) -> Turn:
    targets = data.samples["label"].map(params.data.classes.index).to_numpy(dtype=np.int64)
    rows = np.resize(data.rows(splitting.DEVELOPMENT), size * steps)
    training = Batches(data.images, targets, size, device.device, rows)
    settings = params.train.model_copy(update={"epochs": 10_000, "freeze": 0})
    epochs = fitting.fit(
        _network(params).to(device.device), training, None, settings, params.augment, metrics.epoch_score, device,
        Checkpoints(folder),
    )  # fmt: skip

    def turn() -> float:
        started = time.perf_counter()
        next(epochs)
        return size * steps / (time.perf_counter() - started)

    return turn


def _timm(params: Params, data: Prepared, device: Accelerator, size: int, steps: int, folder: Path) -> Turn:
    files = catalog.read(BUILD / "catalog.csv").set_index("image_id")["image"]
    chosen = data.samples.iloc[data.rows(splitting.DEVELOPMENT)]
    for number in range(size * steps):
        image_id, label = chosen.iloc[number % len(chosen)][["image_id", "label"]]
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{number}.png").symlink_to(Path(files[image_id]).resolve())
    model = timm.create_model(params.model.name, num_classes=len(params.data.classes))
    model = model.to(device.device, memory_format=torch.channels_last).train()
    optimizer = timm.optim.create_optimizer_v2(model, params.train.optimizer, params.train.learning_rate)
    config = timm.data.resolve_model_data_config(model)
    loader = timm.data.create_loader(
        timm.data.create_dataset("", folder, class_map=""), (3, *data.images.shape[1:]), size, is_training=True,
        mean=config["mean"], std=config["std"], interpolation=config["interpolation"], num_workers=os.cpu_count() or 1,
        device=device.device, use_prefetcher=device.device.type == "cuda", persistent_workers=True,
        scale=(0.8, 1.0), hflip=0.5, color_jitter=0.3,
    )  # fmt: skip
    loss_of = nn.CrossEntropyLoss()

    def turn() -> float:
        started, seen = time.perf_counter(), 0
        for images, targets in loader:
            images = images.to(device.device, memory_format=torch.channels_last)
            with device.autocast():
                output = model(images)
            loss = loss_of(output.float(), targets.to(device.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(images)
        loss.item()
        return seen / (time.perf_counter() - started)

    return turn


def _prepare(table: pd.DataFrame, splits: pd.DataFrame, preparation: Preparation, turns: int) -> None:
    with tempfile.TemporaryDirectory() as folder:

        def ours() -> float:
            started = time.perf_counter()
            untouched = verified.untouched(VERIFIED)
            prepared.write(table, splits, preparation, Path(folder, "prepared"), untouched)
            return len(table) / (time.perf_counter() - started)

        def pillow() -> float:
            started = time.perf_counter()
            _with_pillow(table, preparation.size)
            return len(table) / (time.perf_counter() - started)

        speed = _by_turns({"ours": ours, "Pillow": pillow}, turns)
    print(f"preparation of {len(table)} images and their masks")
    _print(speed, "images/s")
    print(f"ours / Pillow {speed['ours'][0] / speed['Pillow'][0]:.2f}")


def _with_pillow(table: pd.DataFrame, size: int) -> None:
    """What a user would write: open, grey, resize; merge the masks and resize them; keep both in arrays."""
    images, merged = np.zeros((len(table), size, size), np.uint8), np.zeros((len(table), size, size), bool)
    for number, row in enumerate(table.to_dict("records")):
        images[number] = np.asarray(
            Image.open(row["image"]).convert("L").resize((size, size), Image.Resampling.BILINEAR)
        )
        for mask in filter(None, row["masks"].split(catalog.SEPARATOR)):
            merged[number] |= np.asarray(Image.open(mask).convert("L").resize((size, size))) > 127


def _start(turns: int) -> None:
    def timed(*command: str) -> Turn:
        def turn() -> float:
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            return time.perf_counter() - started

        return turn

    commands = {"--help": timed(sys.executable, "-m", "ultrasound", "--help"), "dvc repro": timed("dvc", "repro")}
    _print(_by_turns(commands, turns), "s")


def _by_turns(kinds: dict[str, Turn], turns: int) -> dict[str, tuple[float, float, float]]:
    """Median, least and most of each kind, measured by turns; the first turn of each warms up and is left out."""
    values: dict[str, list[float]] = {name: [] for name in kinds}
    for number in tqdm(range(turns + 1), leave=False, disable=None):
        for name, turn in kinds.items():
            value = turn()
            if number:
                values[name].append(value)
    return {name: (statistics.median(found), min(found), max(found)) for name, found in values.items()}


def _print(found: dict[str, tuple[float, float, float]], unit: str) -> None:
    for name, (middle, least, most) in found.items():
        print(f"  {name:<26} {middle:>9.2f} {unit} ({least:.2f} to {most:.2f})")


def _machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores, torch {torch.__version__}"
    names = (
        [line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
        if Path("/proc/cpuinfo").exists()
        else [platform.processor()]
    )
    return f"{names[0]}, {os.cpu_count()} cores, torch {torch.__version__}"


def _precision(device: Accelerator) -> str:
    return "fp32" if device.mixed_precision == "no" else str(device.mixed_precision)


if __name__ == "__main__":
    main()
