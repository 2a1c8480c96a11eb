"""From a file to the pixels that a model sees. The same functions serve training, evaluation and the server."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from ultrasound.errors import InputError

FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 25_000_000  # far above any scanner's frame; decoding more would only cost memory
MASK_THRESHOLD = 127  # brighter mask pixels are lesion

BLACK = 8  # the brightest level of a border: compression leaves so much, an echo that can be seen is brighter
BRIGHT = 96  # a third of a scanner's letter or tick is at least so bright; speckle that stands alone in the dark is not
MARK = 24  # pixels, the largest letter or tick
MOST_MARKS = 20_000  # spots on black; more are noise, and in a large image they would take gigabytes to look through
FLAT = 8  # levels by which the lines of a scanner's grey bar differ
SMALLEST = 32  # pixels, the least side of a scan; where less would be left, nothing is cut

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, right, bottom as Pillow has them: right and bottom are just outside


class Place(NamedTuple):
    """Size of an image in pixels, and the part of it that is prepared."""

    width: int
    height: int
    box: Box


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How images are prepared; saved beside the prepared arrays and inside every classifier.

    Attributes:
        size: side of the square result, pixels.
        crop: whether black borders and scanner rulers are cut off first, see `content_box`.
        fit: `pad` keeps the shape and fills the square with black on both sides, `stretch` does not.
    """

    size: int
    crop: bool = False
    fit: str = "stretch"  # what classifiers did that do not say

    def image(self, source: Path | bytes, name: str = "image") -> Pixels:
        """Decode and prepare one image: (size, size) uint8, grey.

        Raises:
            InputError: what `open_image` refuses.
        """
        return self.grey(open_image(source, name))

    def grey(self, image: Image.Image) -> Pixels:
        """Prepare a decoded image: (size, size) uint8."""
        return self.placed(image)[0]

    def placed(self, image: Image.Image) -> tuple[Pixels, Place]:
        """Prepare a decoded image, and tell where the result lies in it."""
        box = self._box(image)
        pixels = np.asarray(self._square(image.convert("L"), box, Image.Resampling.BILINEAR))
        return pixels, Place(image.width, image.height, box or (0, 0, image.width, image.height))

    def mask(self, masks: Sequence[Image.Image], image: Image.Image) -> NDArray[np.bool_]:
        """Merge the masks of `image` by OR, crop them as it is cropped, and resize: (size, size) bool.

        No masks give an empty one.
        """
        merged = np.zeros((image.height, image.width), dtype=bool)
        for mask in masks:
            merged |= lesion(mask)
        fitted = self._square(Image.fromarray(merged).convert("L"), self._box(image), Image.Resampling.BOX)
        return np.asarray(fitted) > MASK_THRESHOLD

    def back(self, values: Pixels, place: Place) -> Pixels:
        """Lay values of a prepared image over the image itself: (size, size) -> (height, width), 0 where it was cut."""
        box = place.box
        width, height = box[2] - box[0], box[3] - box[1]
        if self.fit != "stretch":
            fitted_width, fitted_height = self._fitted((width, height))
            left, top = (self.size - fitted_width) // 2, (self.size - fitted_height) // 2
            values = values[top : top + fitted_height, left : left + fitted_width]
        whole = np.zeros((place.height, place.width), np.uint8)
        enlarged = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
        whole[box[1] : box[3], box[0] : box[2]] = np.asarray(enlarged)
        return whole

    def _box(self, image: Image.Image) -> Box | None:
        return content_box(np.asarray(image.convert("L"))) if self.crop else None

    def _square(self, image: Image.Image, box: Box | None, resampling: Image.Resampling) -> Image.Image:
        # Cropped before it is resized, so that no pixel of the border is mixed in.
        scan = image.crop(box) if box else image
        if self.fit == "stretch":
            return scan.resize((self.size, self.size), resampling)
        width, height = self._fitted(scan.size)
        square = Image.new("L", (self.size, self.size))
        square.paste(scan.resize((width, height), resampling), ((self.size - width) // 2, (self.size - height) // 2))
        return square

    def _fitted(self, sides: tuple[int, int]) -> tuple[int, int]:
        scale = self.size / max(sides)
        width, height = (max(1, round(scale * side)) for side in sides)
        return width, height


def open_image(source: Path | bytes, name: str = "image") -> Image.Image:
    """Open and fully decode a PNG or JPEG as mode L or RGB.

    16-bit grey is scaled to 8 bits (0..65535 -> 0..255); palettes are resolved; an alpha channel is dropped.

    Args:
        source: a file, or the bytes of one.
        name: what to call the image in an error.

    Raises:
        InputError: the source is no PNG or JPEG, is damaged, or has more than `MAX_PIXELS` pixels.
    """
    try:
        with warnings.catch_warnings():  # Pillow's own limit is above ours
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except FileNotFoundError:
        raise InputError(f"{name} is missing: run `dvc repro --force download` if it was deleted") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a PNG or JPEG image") from None
    except Image.DecompressionBombError:
        raise InputError(_too_large(name)) from None
    except (OSError, SyntaxError, ValueError):
        raise InputError(f"{name} is damaged: its header cannot be read") from None
    if image.width * image.height > MAX_PIXELS:
        raise InputError(_too_large(name))
    try:
        image.load()
    except (OSError, SyntaxError, ValueError):  # Pillow raises any of these on broken data
        raise InputError(f"{name} is damaged or truncated: its pixels cannot be decoded") from None
    if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode == "L" else image.convert("RGB")


def content_box(grey: Pixels) -> Box:
    """Find the scan without the black borders, rulers, letters and grey bars beside it.

    From each side, lines (rows or columns) are cut as long as no pixel in them is brighter than `BLACK`, letters and
    ticks on black aside. A grey bar is cut if it is the same in all its lines and a black line parts it from the scan.
    Shadows and other dark tissue stay: in each of their lines some speckle, or the skin above, is brighter. All is
    comparison of whole numbers, so the box is the same on every machine.

    Args:
        grey: (height, width).

    Returns:
        The box of the scan; that of the whole image where there is no border, or too little would be left.
    """
    height, width = grey.shape
    whole = (0, 0, width, height)
    if not any(_nearly_black_line(side) for side in (grey, grey[::-1], grey.T, grey.T[::-1])):
        return whole
    levels = _without_marks(grey)
    left, top, right, bottom = whole
    while min(right - left, bottom - top) >= SMALLEST:
        scan = levels[top:bottom, left:right]
        cuts = [_margin(side) for side in (scan.T, scan, scan.T[::-1], scan[::-1])]
        if not any(cuts):
            return left, top, right, bottom
        left, top, right, bottom = left + cuts[0], top + cuts[1], right - cuts[2], bottom - cuts[3]
    return whole


def lesion(mask: Image.Image) -> NDArray[np.bool_]:
    """Pixels that a mask marks: (height, width) bool."""
    return np.asarray(mask.convert("L")) > MASK_THRESHOLD


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 of `b"WIDTHxHEIGHT:"` and the RGB bytes: the same however the file was compressed."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()


def _nearly_black_line(lines: Pixels) -> bool:
    """Whether a line among the outer eighth is black but for marks, which cover less than a quarter of it."""
    outer = lines[: max(len(lines) // 8, 1)] > BLACK
    return bool((4 * outer.sum(axis=1) < outer.shape[1]).any())


def _without_marks(grey: Pixels) -> Pixels:
    """Blacken letters, ticks and upright rulers: small, bright, and with nothing but black around them."""
    labels = np.empty(grey.shape, np.int32)
    number = ndimage.label(grey > BLACK, structure=np.ones((3, 3)), output=labels)
    if number > MOST_MARKS:
        return grey
    bright = np.bincount(labels[grey >= BRIGHT], minlength=number + 1)
    every = np.bincount(labels.ravel(), minlength=number + 1)
    marks = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        is_ruler = 4 * height >= len(grey) and every[index] <= 4 * height  # a line and its ticks
        if width <= MARK and (height <= MARK or is_ruler) and 3 * bright[index] >= every[index]:
            marks.append(index)
    return np.where(np.isin(labels, marks), np.uint8(0), grey)


def _margin(lines: Pixels) -> int:
    """How many lines, from the first on, are black or a grey bar before a black line."""
    bright = np.flatnonzero(lines.max(axis=1) > BLACK)
    if len(bright) == 0 or bright[0] > 0:
        return int(bright[0]) if len(bright) else len(lines)
    gap = int(np.argmax(lines[: len(lines) // 8].max(axis=1) <= BLACK)) if len(lines) >= 8 else 0
    bar = lines[1 : max(gap - 1, 1)]  # without its first and last line, which may be smoothed
    if not bar.size or bar.max() < BRIGHT:
        return 0
    shown = bar[:, bar.max(axis=0) > BLACK]
    return gap if np.mean(shown.max(axis=0) - shown.min(axis=0) <= FLAT) > 0.9 else 0


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 1_000_000} megapixels"
