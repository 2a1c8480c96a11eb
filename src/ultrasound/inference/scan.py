"""From what a client sends to the picture of a scan: strict base64, then PNG, JPEG or DICOM by their first bytes."""

from __future__ import annotations

import pybase64
from PIL import Image

from ultrasound.errors import InputError
from ultrasound.images import preparation
from ultrasound.inference import bombs, dicom

MAX_BYTES = 8_000_000  # of one file: an uncompressed frame of 1920 x 1080 pixels in colour has 6.2 MB
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"


def decode(text: object, name: str) -> bytes:
    """Decode strict base64: without line breaks, blanks, or any other character that does not belong to it.

    Args:
        text: what the client sent; anything but a string is refused.
        name: what to call the image in an error.

    Returns:
        1 to `MAX_BYTES` bytes.

    Raises:
        InputError: it is no base64, or that of a larger file.
    """
    if not isinstance(text, str) or not text:
        raise InputError(f"{name} must be a base64 string of a PNG, JPEG or DICOM file")
    if len(text) > (MAX_BYTES + 2) // 3 * 4:
        raise InputError(_too_large(name))
    try:
        content = pybase64.b64decode(text, validate=True)
    except ValueError:
        raise InputError(f"{name} is not valid base64") from None
    if len(content) > MAX_BYTES:
        raise InputError(_too_large(name))
    return content


def open_scan(content: bytes, name: str) -> Image.Image:
    """Decode a PNG, JPEG or DICOM file as mode L or RGB.

    PNG and JPEG are read as the images of the training data are, see `preparation.open_image`; what EXIF says of the
    orientation is ignored there, and so here: scanners write none. DICOM: see `dicom.frame`.

    Args:
        content: the bytes of the file. Its name is of no interest: the first bytes tell what it is.
        name: what to call the image in an error.

    Raises:
        InputError: it is no such file, two in one, damaged, an animation, or larger than `MAX_BYTES` or
            `preparation.MAX_PIXELS`.
    """
    if len(content) > MAX_BYTES:
        raise InputError(_too_large(name))
    kinds = {"PNG": content.startswith(PNG), "JPEG": content.startswith(JPEG), "DICOM": content[128:132] == b"DICM"}
    found = [kind for kind, is_one in kinds.items() if is_one]
    if not found:
        raise InputError(f"{name} is not a PNG, JPEG or DICOM file")
    if len(found) > 1:  # other programs would show another image than the one that is answered to
        raise InputError(f"{name} is a {found[0]} and a {found[1]} file in one: save it as one of them")
    try:
        if found == ["DICOM"]:
            return dicom.frame(content, name)
        if found == ["PNG"]:
            bombs.check_png(content, name)
        else:
            bombs.check_jpeg(content, name)
        return preparation.open_image(content, name)
    except InputError:
        raise
    except Exception:  # Pillow's plugins may raise anything on a damaged file
        raise InputError(f"{name} is damaged: it cannot be decoded") from None


def _too_large(name: str) -> str:
    return f"{name} is larger than {MAX_BYTES // 1_000_000} MB"
