"""The pictures of the page: scan, heat map over the scan, legend, icon. Pure functions of pixels."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw
from scipy import ndimage

from ultrasound.errors import InputError
from ultrasound.images.preparation import Pixels

COLOURS = colormaps["inferno"]  # as in the evaluation's report: equal steps of heat look like equal steps of colour
LEVELS = (COLOURS(np.arange(256))[:, :3] * 255).astype(np.float32)  # of each level of heat
OUTLINE = (0, 209, 255)  # RGB, neither grey nor a colour of the heat
EDGE = 0.004  # width of the outline, of the longer side
LONGEST = 1400  # pixels of a side of what is drawn: more is not seen, and takes 80 MB a megapixel
QUALITY = 92
ACCENT = (0, 104, 168)


def bare(scan: Image.Image) -> Image.Image:
    """The pixels alone, mode L or RGB, without what a file may tell beside them (names, dates, comments)."""
    return Image.fromarray(np.asarray(scan if scan.mode in ("L", "RGB") else scan.convert("RGB")))


def outlined(scan: Image.Image, mask: bytes) -> Image.Image:
    """Draw the edge of a lesion on its scan.

    Args:
        scan: mode L or RGB.
        mask: a PNG as large as the scan, white inside.

    Returns:
        Mode RGB, as large as the scan but for `LONGEST`.

    Raises:
        InputError: the mask is no such image.
    """
    levels, scan = _levels(mask, scan, "outline"), smaller(scan)
    inside = levels > 127
    width = max(round(max(scan.size) * EDGE), 1)
    drawn = np.array(scan.convert("RGB"))
    drawn[ndimage.binary_dilation(inside, iterations=width) & ~inside] = OUTLINE
    return Image.fromarray(drawn)


def overlay(scan: Image.Image, heat_map: bytes, opacity: float) -> Image.Image:
    """Lay a heat map over its scan. The hotter a pixel, the more the colour covers; where it is cold the scan shows.

    Args:
        scan: mode L or RGB.
        heat_map: a grey 8-bit PNG as large as the scan, 0 to 255.
        opacity: of the hottest pixel, 0 to 1.

    Returns:
        Mode RGB, as large as the scan but for `LONGEST`.

    Raises:
        InputError: the heat map is no such image.
    """
    levels, scan = _levels(heat_map, scan, "heat map"), smaller(scan)
    alpha = levels[:, :, None] * np.float32(opacity / 255)
    covered = np.asarray(scan.convert("RGB"), np.float32) * (1 - alpha) + LEVELS[levels] * alpha
    return Image.fromarray(covered.round().astype(np.uint8))


def is_cold(heat_map: bytes) -> bool:
    """Whether nothing in a heat map that `overlay` takes is above 0."""
    with Image.open(io.BytesIO(heat_map), formats=("PNG",)) as opened:
        return opened.convert("L").getbbox() is None


def smaller(scan: Image.Image) -> Image.Image:
    """The scan with at most `LONGEST` pixels a side."""
    if max(scan.size) <= LONGEST:
        return scan
    small = scan.copy()
    small.thumbnail((LONGEST, LONGEST))  # no side becomes 0, however long and thin a scan is
    return small


def _levels(content: bytes, scan: Image.Image, name: str) -> Pixels:
    """The grey levels of a PNG that a server sent for a scan, (height, width) of the `smaller` one."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
            if opened.size != scan.size:
                raise InputError(
                    f"The {name} that the server sent is not as large as the image: it may have seen another frame. "
                    "Update the page or the server, so that both read files alike."
                )
            return np.asarray(smaller(opened.convert("L")))
    except (OSError, SyntaxError, ValueError):
        raise InputError(f"The {name} that the server sent is damaged: look at its log.") from None


def gradient() -> str:
    """The colours of `overlay` from cold to hot, for a legend in CSS."""
    stops = (COLOURS(np.linspace(0, 1, 9))[:, :3] * 255).round().astype(int)
    return f"linear-gradient(to right, {', '.join(f'rgb({r}, {g}, {b})' for r, g, b in stops)})"


def data_uri(image: Image.Image) -> str:
    """A picture for the sheet: at most `LONGEST` pixels a side, nothing but pixels in it."""
    small = smaller(bare(image))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def icon() -> Image.Image:
    """The page's icon: the sector of a probe, (64, 64) RGBA."""
    large = Image.new("RGBA", (256, 256))
    draw = ImageDraw.Draw(large)
    for radius, colour in ((230, ACCENT), (172, (86, 180, 233)), (116, ACCENT), (64, (86, 180, 233))):
        draw.pieslice((128 - radius, 12 - radius, 128 + radius, 12 + radius), 52, 128, fill=(*colour, 255))
    return large.resize((64, 64), Image.Resampling.LANCZOS)
