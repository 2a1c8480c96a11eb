"""Synthetic B-mode breast scans with lesion masks, laid out as BUSI is.

They let the demonstration and the tests run offline; a score on them says nothing about patients. Imitated, in order:

* anatomy: skin, fat with septa, fibroglandular tissue, pectoral muscle, chest wall, bent by one displacement field;
* lesions after the sonographic features of Stavros et al., "Solid breast nodules", Radiology 196:123-134 (1995):
  oval, circumscribed and wider than tall, against spiculated or microlobulated, taller than wide, shadowing, with an
  echogenic halo or calcifications. Some features contradict the class, as in patients;
* attenuation as a sum along the vertical beam, from which posterior enhancement and shadow and the edge shadows of a
  capsule all follow, and an imperfect time gain compensation;
* fully developed speckle: complex Gaussian scatterers seen through a point spread function that widens with depth,
  hence a Rayleigh envelope with mean / deviation = 1.91 (Wagner et al., "Statistics of speckle in ultrasound
  B-scans", IEEE Trans. Sonics Ultrason. 30:156-163, 1983); three looks are compounded;
* logarithmic compression to 50-60 dB, with gain and contrast of each scan's own.
"""

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import fft, ndimage, special
from tqdm import tqdm

from ultrasound.errors import InputError
from ultrasound.images import catalog
from ultrasound.images.sources import Release
from ultrasound.sections import Data, Download

CLASSES = ("benign", "malignant", "normal")
REPEAT = 10  # as happens in BUSI, a scan of each class returns: here each tenth shows the ninth again
ANGLES = np.linspace(-np.pi, np.pi, 721)

Shape = tuple[int, int]  # rows (depth), columns (lateral)
Field = NDArray[np.float32]
Curve = NDArray[np.float64]

# Sonographic features: the range of the benign, the range of the malignant. Lengths are in pixels, levels in decibels;
# a negative level or number means that the feature is absent.
FEATURES = {
    "height": ((0.45, 0.8), (0.75, 1.5)),  # divided by the width, before the tilt
    "tilt": ((-0.25, 0.25), (-0.6, 0.6)),  # radians
    "lobulation": ((0.005, 0.035), (0.08, 0.17)),  # deviation of the radius, as a fraction
    "spicules": ((-9, 0), (-4, 18)),  # number
    "softness": ((0.5, 2.5), (2, 6)),  # of the margin
    "echo": ((-32, -16), (-29, -17)),
    "mottle": ((0.5, 2.5), (1.5, 4.5)),  # heterogeneity inside
    "loss": ((-20, -1), (3, 28)),  # along the beam through the whole lesion
    "capsule": ((-8, 10), (-8, 0)),
    "halo": ((-8, 0), (-6, 10)),
    "calcifications": ((-9, 0), (-16, 13)),  # number
}
CONTRARY = 0.05  # probability that a lesion takes a feature from the other class's range
DESCRIPTION = (
    "Synthetic phantoms that imitate B-mode scans, made by this project. They show that the software works; a score on "
    "them says nothing about patients."
)


def fetch(data: Data, download: Download, data_folder: Path, build_folder: Path) -> Release:
    """Make `data.count` phantoms in `build_folder`/phantoms.

    Raises:
        InputError: a class is not benign, malignant or normal.
    """
    folder = build_folder / "phantoms"
    write(folder, data.classes, data.count, data.seed)
    return Release(folder, catalog.scan(folder, catalog.list_files(folder, data.classes)))


def phantom(label: str, index: int, seed: int) -> tuple[Image.Image, Image.Image]:
    """Return scan `index` (from 1) of a class: 8-bit grey (mode "L"), about 380-620 pixels wide and 320-520 high.

    With it comes the lesion mask (mode "1") of the same size, empty for `normal`. Both depend on (label, index, seed)
    alone; `seed` is not negative.

    Raises:
        InputError: `label` is not benign, malignant or normal.
    """
    _check([label])
    again = index % REPEAT == 0
    key = [seed, CLASSES.index(label)]
    echo, mask = _scan(label, np.random.default_rng([*key, index - again]))
    view = np.random.default_rng([*key, index, 1])
    span, middle, gamma = view.uniform([50, 0.5, 0.9], [60, 0.68, 1.25])  # the logarithmic compression
    grey = np.asarray(np.rint(255 * np.clip(echo / span + middle, 0, 1) ** gamma), np.uint8)
    return _repeat(grey, mask, view) if again else (Image.fromarray(grey), Image.fromarray(mask))


def write(folder: Path, classes: Sequence[str], count: int, seed: int) -> None:
    """Write `count` scans, split evenly over `classes`, under the names of BUSI.

    They are `folder/LABEL/LABEL (i).png` and `LABEL (i)_mask.png`, i from 1. An existing `folder` is replaced, and
    only when everything new is written.

    Raises:
        InputError: a class is not benign, malignant or normal.
    """
    _check(classes)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        fresh = Path(scratch, "fresh")  # mkdtemp's own folder would be closed to other users
        jobs = []
        for position, label in enumerate(classes):
            (fresh / label).mkdir(parents=True)
            jobs += [(fresh, label, rank + 1, seed) for rank in range(len(range(position, count, len(classes))))]
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            list(tqdm(pool.map(_save, jobs, chunksize=4), "phantoms", len(jobs), disable=None))
        if folder.exists():
            folder.rename(Path(scratch, "replaced"))
        fresh.rename(folder)


def envelope(level: Field, rng: Generator) -> Field:
    """Return the speckled echo amplitude (rows x columns) of tissue at `level` (decibels, rows x columns).

    Rows are depth. Tissue at 0 dB has a mean power of 1 at any depth.
    """
    axial, lateral = 1.4, np.linspace(1.8, 4.0, len(level), dtype=np.float32)[:, None]  # pixels
    scatterers = rng.standard_normal((*level.shape, 2), np.float32).view(np.complex64)[..., 0] * 10 ** (level / 20)
    beam = np.exp(-2 * (np.pi * lateral * fft.fftfreq(level.shape[1]).astype(np.float32)) ** 2)
    echo = fft.ifft(fft.fft(scatterers, axis=1) * beam, axis=1)
    echo = ndimage.gaussian_filter1d(echo, axial, axis=0, truncate=3)
    # The filters average the scatterers: their power, 2, falls by 1 / (4 pi axial lateral).
    return np.asarray(np.abs(echo) * np.sqrt(2 * np.pi * axial * lateral), np.float32)


def _check(labels: Sequence[str]) -> None:
    for label in labels:
        if label not in CLASSES:
            raise InputError(f"no phantom shows the class {label!r}: choose from {', '.join(CLASSES)}")


def _save(job: tuple[Path, str, int, int]) -> None:
    folder, label, index, seed = job
    for picture, suffix in zip(phantom(label, index, seed), ("", "_mask"), strict=True):
        picture.save(folder / label / f"{label} ({index}){suffix}.png")


def _scan(label: str, rng: Generator) -> tuple[Field, NDArray[np.bool_]]:
    """Return the echo in decibels and the lesion mask."""
    shape = int(rng.integers(320, 521)), int(rng.integers(380, 621))
    echo, loss = _breast(shape, rng, decoys=0.45 if label == "normal" else 0.18)
    mask = np.zeros(shape, bool)
    if label != "normal":
        mask = _insert(_features(label, rng), echo, loss, rng)
    depth = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None]
    gain = rng.uniform(-9, 2) * depth + rng.uniform(-2, 2) * np.sin(rng.uniform(3, 8) * depth)
    level = echo + gain - ndimage.gaussian_filter1d(np.cumsum(loss, axis=0), 3, axis=1)
    level = np.maximum(level, -45)  # the receiver's noise
    return 10 * np.log10(np.mean([envelope(level, rng) ** 2 for _ in range(3)], axis=0)), mask


def _texture(shape: Shape, grain: tuple[float, float], rng: Generator) -> Field:
    """Return smooth noise of about unit deviation; `grain` is its height and width in pixels."""
    height, width = shape[0] / grain[0], shape[1] / grain[1]
    noise = Image.fromarray(rng.standard_normal((int(height) + 3, int(width) + 3), np.float32))
    smooth = noise.resize(shape[::-1], Image.Resampling.BICUBIC, (0.5, 0.5, 0.5 + width, 0.5 + height))
    return np.asarray(smooth, np.float32) * np.float32(1.3)


def _breast(shape: Shape, rng: Generator, decoys: float) -> tuple[Field, Field]:
    """Return echogenicity (decibels) and attenuation (decibels per pixel of depth) without a lesion.

    `decoys` is the probability of each thing that is dark and no lesion.
    """
    rows, columns = shape
    row, column = np.ogrid[:rows, :columns]
    thickness = rng.uniform([0.03, 0.08, 0.3, 0.03, 0.09], [0.06, 0.22, 0.5, 0.04, 0.17])
    skin, fat, gland, fascia, chest = rows * np.cumsum(thickness)
    patchy = _texture(shape, (25, 40), rng)
    septa = np.exp(-((_texture(shape, (18, 90), rng) / 0.2) ** 2)) * np.clip(0.6 + 0.5 * patchy, 0, 1.2)
    lobules = -15 + 2 * patchy + 12 * septa
    fibres = -3 + 4 * _texture(shape, (12, 45), rng) + 3 * _texture(shape, (5, 14), rng) + 3 * patchy + 5 * septa
    muscle = -9 + 3 * _texture(shape, (5, 70), rng) + 2 * patchy
    layers = [row < skin, row < fat, row < gland, row < fascia, row < chest]
    echo = np.select(layers, [np.ones(shape), lobules, fibres, lobules, muscle], -17 + 3 * patchy).astype(np.float32)
    for depth, level in ((1, 12), (skin, 10), (fascia, 12), (chest, 14)):  # specular interfaces
        echo += level * np.exp(-(((row - depth) / 2.5) ** 2)) * np.clip(1 + 0.4 * patchy, 0, 1.5)
    loss = np.zeros(shape, np.float32)
    for _ in range(rng.binomial(4, decoys)):  # fat lobules among the glandular tissue
        y, x = rng.uniform(skin, gland), rng.uniform(0, columns)
        height, width = rows * rng.uniform(0.03, 0.08), columns * rng.uniform(0.06, 0.15)
        radius = np.hypot((row - y) / height, (column - x) / width)
        echo += special.expit((1 - radius) * 12) * (-15 + 8 * septa - echo)
        echo += 7 * np.exp(-(((radius - 1) * height / 2.5) ** 2))
    for _ in range(rng.binomial(3, decoys)):  # Cooper's ligaments cast narrow shadows
        y, x, width = rng.uniform(skin, gland), rng.uniform(0, columns), rng.uniform(5, 25)
        ligament = np.exp(-(((column - x) / width) ** 2) - ((row - y) / 6) ** 2)
        echo += 8 * ligament
        loss += rng.uniform(0.4, 1.4) * ligament
    bend = _texture(shape, (rows / 3, columns / 2.5), rng) * np.minimum(row / rows, 0.4) * 0.09 * rows
    bent = np.clip(row + bend, 0, rows - 1).astype(np.intp)
    return np.take_along_axis(echo, bent, 0), np.take_along_axis(loss, bent, 0)


def _features(label: str, rng: Generator) -> dict[str, float]:
    drawn = {
        name: rng.uniform(*ranges[CLASSES.index(label) ^ (rng.random() < CONTRARY)])
        for name, ranges in FEATURES.items()
    }
    return drawn | {name: max(0, drawn[name]) for name in ("spicules", "capsule", "halo", "calcifications")}


def _margin(shape: Shape, feature: dict[str, float], rng: Generator) -> Curve:
    """Return the radius at each of ANGLES of a lobed ellipse that fits into the scan."""
    order = np.arange(2, 13)[:, None]
    lobes = np.sum(np.cos(order * ANGLES + rng.uniform(0, 2 * np.pi, order.shape)) / order, 0)
    radius = 1 + feature["lobulation"] * lobes / lobes.std()
    along, across = np.cos(ANGLES - feature["tilt"]), np.sin(ANGLES - feature["tilt"])
    radius /= np.hypot(along, across / feature["height"])
    area = shape[0] * shape[1] * np.exp(rng.uniform(np.log(0.06), np.log(0.19)))
    radius *= np.sqrt(area / (np.pi * np.mean(radius**2)))
    high, wide = np.ptp(radius * np.sin(ANGLES)), np.ptp(radius * np.cos(ANGLES))
    return np.asarray(radius * min(1, 0.65 * shape[0] / high, 0.8 * shape[1] / wide))


def _spicules(count: int, rng: Generator) -> Curve:
    """Return how far the lesion reaches beyond its margin at each of ANGLES, as a fraction of the radius."""
    reach = np.zeros_like(ANGLES)
    for _ in range(count):
        away = np.abs(np.angle(np.exp(1j * (ANGLES - rng.uniform(-np.pi, np.pi)))))
        reach = np.maximum(reach, rng.uniform(0.1, 0.4) * np.exp(-away / rng.uniform(0.02, 0.06)))
    return reach


def _insert(feature: dict[str, float], echo: Field, loss: Field, rng: Generator) -> NDArray[np.bool_]:
    """Draw a lesion into both maps, somewhere below the skin, and return its mask: the margin without the spicules."""
    rows, columns = echo.shape
    margin = _margin((rows, columns), feature, rng)
    ys, xs = margin * np.sin(ANGLES), margin * np.cos(ANGLES)
    top, bottom = 0.1 * rows - ys.min(), 0.9 * rows - ys.max()
    y = rng.triangular(top, top + 0.3 * (bottom - top), bottom)
    x = rng.uniform(0.05 * columns - xs.min(), 0.95 * columns - xs.max())
    down, right = np.arange(rows)[:, None] - y, np.arange(columns) - x
    radius, angle = np.hypot(down, right).astype(np.float32), np.arctan2(down, right)
    outside = (radius - np.interp(angle, ANGLES, margin)).astype(np.float32)
    beyond = radius - np.interp(angle, ANGLES, margin * (1 + _spicules(int(feature["spicules"]), rng)))
    beyond += feature["softness"] * 0.7 * _texture((rows, columns), (7, 10), rng)
    inside = special.expit(-beyond / feature["softness"])
    rim = feature["capsule"] * np.exp(-((outside / 2) ** 2))
    echo += feature["halo"] * np.exp(-((np.maximum(outside, 0) / 14) ** 2))
    echo += inside * (feature["echo"] + feature["mottle"] * _texture((rows, columns), (14, 20), rng) - echo)
    echo += rim * (0.3 + 0.7 * np.abs(down) / (radius + 1))  # brightest across the beam
    loss += inside * (feature["loss"] / np.ptp(ys) - loss)
    loss += 0.012 * rim  # the beam that grazes the capsule stays in it for long: edge shadows
    for _ in range(int(feature["calcifications"])):
        row, column = (np.array([y, x]) + rng.normal(0, 0.3, 2) * margin.min()).astype(int)
        echo[row : row + 2, column : column + 2] += rng.uniform(12, 24)
    return np.asarray(outside < 0)


def _repeat(grey: NDArray[np.uint8], mask: NDArray[np.bool_], rng: Generator) -> tuple[Image.Image, Image.Image]:
    """Crop 2-4 % of the width and of the height and perhaps draw the calipers of a measurement."""
    rows, columns = mask.shape
    (top, left), (bottom, right) = (rng.uniform(0.01, 0.02, (2, 2)) * mask.shape).astype(int)
    window = np.s_[top : rows - bottom, left : columns - right]
    scan = Image.fromarray(grey[window])
    if mask.any() and rng.random() < 0.5:
        points = np.argwhere(mask[window])[:, ::-1].astype(float)
        along = (points - points.mean(0)) @ np.linalg.eigh(np.cov(points.T))[1][:, -1]
        for x, y in points[[along.argmin(), along.argmax()]]:
            ImageDraw.Draw(scan).line((x - 6, y, x + 6, y), 240)
            ImageDraw.Draw(scan).line((x, y - 6, x, y + 6), 240)
    return scan, Image.fromarray(mask[window])
