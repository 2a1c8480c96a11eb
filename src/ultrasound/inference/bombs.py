"""Small files that would keep a decoder busy for minutes, or make it fill the memory: told by a look at their frame.

Pillow and pydicom limit the size of an image, but not how many pieces or passes it comes in.
"""

from __future__ import annotations

import struct

from ultrasound.errors import InputError

MOST_CHUNKS = 20_000  # of a PNG; encoders cut pixels into pieces of 4 to 64 kB
MOST_SEGMENTS = 2_000  # of a JPEG before its pixels; encoders write some ten
MOST_SCANS = 32  # passes of a progressive JPEG over its pixels; encoders make some ten

START_OF_SCAN = b"\xff\xda"


def check_png(content: bytes, name: str) -> None:
    """Walk over the chunks.

    Raises:
        InputError: there are more than `MOST_CHUNKS`, the last one is missing, or it is an animation, where no frame
            stands for the others.
    """
    at = 8
    for _ in range(MOST_CHUNKS):
        length, kind = struct.unpack(">I4s", content[at : at + 8].ljust(8, b"\0"))
        at += length + 12
        if at > len(content):
            raise InputError(f"{name} is damaged or truncated: its end is missing")
        if kind == b"acTL":
            raise InputError(f"{name} is an animation: send one of its pictures")
        if kind == b"IEND":
            return
    raise InputError(f"{name} is a PNG file in more than {MOST_CHUNKS} pieces: save it again")


def check_jpeg(content: bytes, name: str) -> None:
    """Walk to the first scan and count the scans; in their data, no byte 255 stands before a marker's number.

    Raises:
        InputError: there are more than `MOST_SEGMENTS` before it or more than `MOST_SCANS`, or it cannot be found.
    """
    at = 2
    for _ in range(MOST_SEGMENTS):
        while content[at : at + 2] == b"\xff\xff":  # filled up
            at += 1
        if content[at : at + 2] == START_OF_SCAN:
            break
        if content[at : at + 1] != b"\xff" or len(content) < at + 4:
            raise InputError(f"{name} is damaged: its header cannot be read")
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    else:
        raise InputError(f"{name} is a JPEG file in more than {MOST_SEGMENTS} pieces: save it again")
    if content.count(START_OF_SCAN, at) > MOST_SCANS:
        raise InputError(f"{name} is a JPEG file of more than {MOST_SCANS} passes: save it as baseline JPEG")


def check_rle(encoded: bytes, name: str, pixels: int, segments: int) -> None:
    """Add up what the runs of a DICOM frame become (PS3.5 G.3): two bytes can become 128.

    Args:
        encoded: the frame.
        name: what to call the image in an error.
        pixels: rows x columns, and so the bytes of a segment.
        segments: bytes of a pixel.

    Raises:
        InputError: it is no such frame.
    """
    count, *starts = struct.unpack("<16L", encoded[:64].ljust(64, b"\0"))
    ends = [*starts[1:segments], len(encoded)]
    for start, end in zip(starts[:segments], ends, strict=True):
        at, size = start, 0
        while at < min(end, len(encoded)) and size <= 2 * pixels:  # some room for padding
            head = encoded[at]
            at += 2 if head > 128 else 1 + (head + 1) % 129
            size += 257 - head if head > 128 else (head + 1) % 129
        if count != segments or not pixels <= size <= 2 * pixels:
            raise InputError(f"{name} is a damaged DICOM file: its pixels are not as many as it says")
