"""From a file to the pixels that a model sees. The same functions serve training, evaluation and the server."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ultrasound.errors import InputError

FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 25_000_000  # far above any scanner's frame; decoding more would only cost memory
MASK_THRESHOLD = 127  # brighter mask pixels are lesion

Pixels = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How images are prepared; saved beside the prepared arrays and inside every classifier.

    Attributes:
        size: side of the square result, pixels.
    """

    size: int

    def image(self, source: Path | bytes, name: str = "image") -> Pixels:
        """Decode and prepare one image: (size, size) uint8, grey.

        Raises:
            InputError: what `open_image` refuses.
        """
        return self.grey(open_image(source, name))

    def grey(self, image: Image.Image) -> Pixels:
        """Prepare a decoded image: (size, size) uint8. The aspect ratio is not kept."""
        return np.asarray(image.convert("L").resize((self.size, self.size), Image.Resampling.BILINEAR))

    def mask(self, masks: Sequence[Image.Image], width: int, height: int) -> NDArray[np.bool_]:
        """Merge the masks of one image by OR and resize: (size, size) bool; no masks give an empty one."""
        merged = np.zeros((height, width), dtype=bool)
        for mask in masks:
            merged |= lesion(mask)
        resized = Image.fromarray(merged).convert("L").resize((self.size, self.size), Image.Resampling.BOX)
        return np.asarray(resized) > MASK_THRESHOLD


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
    return image if image.mode == "L" else image.convert("RGB")


def lesion(mask: Image.Image) -> NDArray[np.bool_]:
    """Pixels that a mask marks: (height, width) bool."""
    return np.asarray(mask.convert("L")) > MASK_THRESHOLD


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 of `b"WIDTHxHEIGHT:"` and the RGB bytes: the same however the file was compressed."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 1_000_000} megapixels"
