"""Bad requests, for the tests of all that takes them: files, base64 texts, and whole bodies of `/invocations`.

`FILES` and `TEXTS` are what can stand in a row, `KINDS` are bodies; each of them must be refused. `GENERATED` makes
more, of which some may happen to be good.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate

from tests.dicoms import as_file, dicom, lookup, raw, short
from ultrasound.images.sources.phantom import phantom

EXAMPLES = int(os.environ.get("BAD_BODIES", "150"))  # generated ones for a server; 10000 take minutes

PICTURE = phantom("benign", 1, 0)[0].convert("L").resize((160, 120))
GREY = np.asarray(PICTURE)
COLOUR = np.stack([GREY, GREY, GREY // 2], axis=-1)
PNG, JPEG, DICOM = as_file(GREY, "PNG"), as_file(GREY, "JPEG"), dicom(GREY)
RLE_DICOM = dicom(GREY, syntax=uid.RLELossless)
JPEG_DICOM = dicom(GREY, syntax=uid.JPEGBaseline8Bit)


def good(*contents: bytes, **params: Any) -> bytes:
    """A body with a row an image, and `params` if there are any."""
    rows = [[base64.b64encode(content).decode()] for content in contents]
    return _json(split(rows) | ({"params": params} if params else {}))


def split(rows: Any, columns: Any = ("image",), **more: Any) -> dict[str, Any]:
    return {"dataframe_split": {"columns": columns, "data": rows} | more}


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, *chunks: bytes, bits: int = 8, kind: int = 0) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return PNG[:8] + header + b"".join(chunks) + _chunk(b"IEND", b"")


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]


def _with_size(jpeg: bytes, width: int, height: int) -> bytes:
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def _image(form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, form, **options)
    return buffer.getvalue()


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("scan.png", PNG)
    return buffer.getvalue()


def _numpy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, GREY)
    return buffer.getvalue()


def _deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return raw(packer.compress(content) + packer.flush(), syntax=uid.DeflatedExplicitVRLittleEndian)


def _nested(depth: int) -> bytes:
    """A sequence in a sequence in a sequence, all of undefined length."""
    start = struct.pack("<HH2sHL", 0x0018, 0x6011, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    return raw(start * depth)


def _with_numbers(count: int) -> bytes:
    """A window with so many centers: each would become an object."""
    center = struct.pack("<HHL", 0x0028, 0x1050, 2) + b"1 "
    numbers = struct.pack("<HHL", 0x0028, 0x1050, 2 * count) + b"1\\" * (count - 1) + b"1 "
    content = dicom(GREY, syntax=uid.ImplicitVRLittleEndian, WindowCenter="1", WindowWidth=9)
    assert center in content
    return content.replace(center, numbers)


def _rle_bomb() -> bytes:
    """Each two bytes become 128: half a gigabyte."""
    return struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * 3_900_000


SCAN = JPEG[JPEG.index(b"\xff\xda") : -2]
PROGRESSIVE = as_file(GREY, "JPEG", progressive=True)
ITEMS = struct.pack("<HH2sHL", 0x0018, 0x6011, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 900_000

FILES: dict[str, bytes] = {  # bytes that are no image which could be answered to
    "a gif": _image("GIF"),
    "a bmp": _image("BMP"),
    "a tiff": _image("TIFF"),
    "a webp": _image("WEBP"),
    "an icon": _image("ICO"),
    "a ppm": _image("PPM"),
    "a jpeg 2000 file": _image("JPEG2000"),
    "a pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n",
    "an svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "html": b"<!doctype html><script>alert(1)</script>",
    "a zip": _zip(),
    "a pickle": pickle.dumps({"image": GREY}),
    "a numpy file": _numpy(),
    "an eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n%%EOF\n",
    "text": b"The lesion is benign.",
    "a byte": b"\x89",
    "zeros": bytes(1000),
    "dicom without preamble": DICOM[132:],
    # PNG
    "png: magic alone": PNG[:8],
    "png: header alone": PNG[:33],
    "png: half": PNG[: len(PNG) // 2],
    "png: without its last pixels": PNG[: len(PNG) - 400],
    "png: damaged header": _flipped(PNG, 19),
    "png: damaged pixels": _flipped(PNG, len(PNG) // 2),
    "png: line ends converted": PNG.replace(b"\r\n", b"\n"),
    "png: no pixels": _png(60, 40),
    "png: 0 pixels wide": _png(0, 40, _chunk(b"IDAT", zlib.compress(b""))),
    "png: 100 megapixels": _png(10_000, 10_000, _chunk(b"IDAT", zlib.compress(b"\0" * 1000))),
    "png: 4 gigapixels": _png(65_535, 65_535, _chunk(b"IDAT", zlib.compress(b""))),
    "png: the largest size": _png(2**31 - 1, 2**31 - 1, _chunk(b"IDAT", zlib.compress(b""))),
    "png: size beyond the largest": _png(2**32 - 1, 2**32 - 1),
    "png: an unknown number of bits": _png(60, 40, _chunk(b"IDAT", zlib.compress(b"\0" * 3000)), bits=7),
    "png: an unknown colour type": _png(60, 40, _chunk(b"IDAT", zlib.compress(b"\0" * 3000)), kind=5),
    "png: an unknown filter": _png(60, 40, _chunk(b"IDAT", zlib.compress(b"\x09" * 61 * 40))),
    "png: pixels that are not compressed": _png(60, 40, _chunk(b"IDAT", b"\0" * 61 * 40)),
    "png: without its end": PNG[:-12],
    "png: a chunk beyond the end": PNG[:33] + struct.pack(">I4s", 2**31 - 1, b"IDAT") + PNG[41:],
    "png: text that inflates": _png(60, 40, _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(60_000_000)))),
    "png: 600 000 chunks": _png(60, 40, _chunk(b"teSt", b"") * 600_000),
    "png: an animation": as_file(GREY, "PNG", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
    "png: and dicom": _png(
        60, 40, _chunk(b"teSt", b"\0" * (128 - 41) + b"DICM"), _chunk(b"IDAT", zlib.compress(bytes(61 * 40)))
    ),
    # JPEG
    "jpeg: magic alone": JPEG[:3],
    "jpeg: header alone": JPEG[: JPEG.index(b"\xff\xda")],
    "jpeg: half": JPEG[: len(JPEG) // 2],
    "jpeg: ends with its first scan's header": JPEG[: JPEG.index(b"\xff\xda") + 10],
    "jpeg: no tables": JPEG[:2] + JPEG[JPEG.index(b"\xff\xc0") :],
    "jpeg: no frame header": JPEG[: JPEG.index(b"\xff\xc0")] + JPEG[JPEG.index(b"\xff\xda") :],
    "jpeg: 12 bits": _flipped(JPEG, JPEG.index(b"\xff\xc0") + 4),
    "jpeg: 0 pixels wide": _with_size(JPEG, 0, 40),
    "jpeg: 0 rows": _with_size(JPEG, 40, 0),
    "jpeg: 4 gigapixels": _with_size(JPEG, 65_535, 65_535),
    "jpeg: 100 megapixels": _with_size(JPEG, 10_000, 10_000),
    "jpeg: 4000 passes": _with_size(PROGRESSIVE.replace(b"\xff\xc2", b"\xff\xc0"), 4000, 4000)[:-2] + SCAN[:12] * 4000,
    "jpeg: a million segments": JPEG[:2] + b"\xff\xfe\x00\x02" * 1_000_000 + JPEG[2:],
    "jpeg: a segment beyond the end": JPEG[:2] + b"\xff\xe1\xff\xff" + JPEG[2:600],
    # DICOM
    "dicom: preamble alone": DICOM[:132],
    "dicom: meta alone": DICOM[:300],
    "dicom: without pixels": dicom(GREY, PixelData=None),
    "dicom: without its last pixels": DICOM[: len(DICOM) - 5000],
    "dicom: without rows": dicom(GREY, Rows=None),
    "dicom: 0 rows": dicom(GREY, Rows=0),
    "dicom: more rows than there are": dicom(GREY, Rows=1000),
    "dicom: 4 gigapixels": dicom(GREY, Rows=65_535, Columns=65_535),
    "dicom: a frame of 4 gigapixels in a jpeg of 160 x 120": dicom(
        GREY, Rows=65_535, Columns=65_535, syntax=uid.JPEGBaseline8Bit
    ),
    "dicom: 2 samples": dicom(GREY, SamplesPerPixel=2),
    "dicom: 32 bits": dicom(GREY, BitsAllocated=32),
    "dicom: more bits stored than there are": dicom(GREY, BitsStored=12),
    "dicom: no such colours": dicom(GREY, PhotometricInterpretation="HSV"),
    "dicom: a palette that is missing": dicom(GREY, PhotometricInterpretation="PALETTE COLOR"),
    "dicom: a window of width 0": dicom(GREY, WindowCenter=100, WindowWidth=0),
    "dicom: slope 0": dicom(GREY, RescaleSlope=0, RescaleIntercept=5),
    "dicom: slope without end": dicom(GREY, RescaleSlope="1e999", RescaleIntercept=0),
    "dicom: a lookup table of 99 bits": dicom(GREY, VOILUTSequence=[lookup(range(9), 0, 99)]),
    "dicom: a million frames": dicom(GREY, NumberOfFrames=1_000_000),
    "dicom: a million frames of jpeg": dicom(GREY, NumberOfFrames=1_000_000, syntax=uid.JPEGBaseline8Bit),
    "dicom: -1 frames": dicom(GREY, NumberOfFrames=-1),
    "dicom: deflated": _deflated(short(0x0028, 0x0010, b"US", b"\x78\0")),
    "dicom: deflated zeros": _deflated(bytes(30_000_000)),
    "dicom: an unknown syntax": raw(syntax="1.2.3.4"),
    "dicom: jpeg ls": dicom(GREY, syntax=uid.JPEGLSLossless, encoded=[b"\xff\xd8\xff\xf7"]),
    "dicom: no syntax": raw().replace(b"1.2.840.10008.1.2.1", b"                   "),
    "dicom: sequences 5000 deep": _nested(5000),
    "dicom: 900 000 items": raw(ITEMS),
    "dicom: 900 000 elements": raw(short(0x0009, 0x0001, b"LO", b"") * 900_000),
    "dicom: an element beyond the end": raw(struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFE)),
    "dicom: a window of a million numbers": _with_numbers(1_000_000),
    "dicom: jpeg cut short": dicom(GREY, syntax=uid.JPEGBaseline8Bit, encoded=[JPEG[: len(JPEG) // 2]]),
    "dicom: jpeg of another size": dicom(GREY, syntax=uid.JPEGBaseline8Bit, encoded=[as_file(GREY[:50], "JPEG")]),
    "dicom: jpeg of 4 gigapixels": dicom(GREY, syntax=uid.JPEGBaseline8Bit, encoded=[_with_size(JPEG, 65_535, 65_535)]),
    "dicom: png instead of jpeg": dicom(GREY, syntax=uid.JPEGBaseline8Bit, encoded=[PNG]),
    "dicom: jpeg 2000 cut short": dicom(
        GREY, syntax=uid.JPEG2000Lossless, encoded=[as_file(GREY, "JPEG2000", no_jp2=True)[:2000]]
    ),
    "dicom: rle that inflates": dicom(GREY, syntax=uid.RLELossless, encoded=[_rle_bomb()]),
    "dicom: rle cut short": dicom(GREY, syntax=uid.RLELossless, encoded=[_rle_bomb()[:70]]),
    "dicom: empty frame": dicom(GREY, syntax=uid.RLELossless, encoded=[b"\0\0"]),
    "dicom: no frame": dicom(GREY, syntax=uid.RLELossless, PixelData=encapsulate([b"\0" * 70])[:8]),
    "dicom: cut in a compressed frame": RLE_DICOM[: len(RLE_DICOM) - 3000],
    "dicom: cut in a jpeg frame": JPEG_DICOM[: len(JPEG_DICOM) - 1000],
}

IMAGE = base64.b64encode(PNG).decode()
TEXTS: dict[str, str] = {  # what is not the base64 of anything
    "empty": "",
    "a blank": " ",
    "a line break at the end": IMAGE + "\n",
    "line breaks": "\n".join(IMAGE[at : at + 76] for at in range(0, len(IMAGE), 76)),
    "blanks inside": IMAGE[:40] + " " + IMAGE[40:],
    "a character missing": IMAGE.rstrip("=")[:-1] if len(IMAGE.rstrip("=")) % 4 == 2 else IMAGE.rstrip("=")[:41],
    "a character inside": IMAGE[:40] + "!" + IMAGE[40:],
    "padding inside": IMAGE[:40] + "==" + IMAGE[40:],
    "padding alone": "====",
    "more padding": IMAGE.rstrip("=") + "=====",
    "url-safe": base64.urlsafe_b64encode(b"\xfb\xff\xfe" * 30).decode(),
    "a data address": f"data:image/png;base64,{IMAGE}",
    "base64 twice": base64.b64encode(IMAGE.encode()).decode(),
    "hexadecimal": PNG.hex(),
    "a path": "../../../../etc/passwd",
    "a path in windows": "..\\..\\windows\\win.ini",
    "a file address": "file:///etc/passwd",
    "an address": "http://169.254.169.254/latest/meta-data/",
    "a model's address": "models:/breast-ultrasound@champion",
    "nul": "\0",
    "nul at the end": IMAGE + "\0",
    "a lone surrogate": "\ud800",
    "a surrogate in the image": IMAGE[:40] + "\udfff" + IMAGE[40:],
    "other digits": IMAGE[:40] + "\uff11\u0661" + IMAGE[42:],
    "a byte order mark": "\ufeff" + IMAGE,
    "an emoji": "\U0001f9e1",
    "words": "benign",
    "none": "None",
    "nan": "NaN",
    "sql": "' OR 1=1 --",
    "a template": "{{7*7}}",
    "a format": "%s%s%n{0.__class__}",
    "json": '{"image": 1}',
    "a letter, eight million times": "A" * 8_000_000,
    "longer than any image": "A" * 10_700_000,
}

CELLS: dict[str, Any] = {  # what is no string at all
    "null": None, "a number": 7, "a fraction": 0.5, "true": True, "a list": [IMAGE], "an empty list": [],
    "bytes as numbers": list(PNG[:50]), "an object": {"b64": IMAGE}, "a large number": 10**400,
    "pixels": GREY[:9, :9].tolist(),
}  # fmt: skip

SHAPES: dict[str, Any] = {  # JSON of another shape
    "a list": [],
    "a list of images": [IMAGE],
    "a string": IMAGE,
    "a number": 1,
    "null": None,
    "true": True,
    "an empty object": {},
    "the image alone": {"image": IMAGE},
    "predictions": {"predictions": [{"label": "benign"}]},
    "an unknown form": {"dataframe": [{"image": IMAGE}]},
    "two forms": split([[IMAGE]]) | {"inputs": [{"image": IMAGE}]},
    "params alone": {"params": {"explain": True}},
    "split: null": {"dataframe_split": None},
    "split: a list": {"dataframe_split": [[IMAGE]]},
    "split: a string": {"dataframe_split": IMAGE},
    "split: a number": {"dataframe_split": 7},
    "split: empty": {"dataframe_split": {}},
    "split: no columns": {"dataframe_split": {"data": [[IMAGE]]}},
    "split: no data": {"dataframe_split": {"columns": ["image"]}},
    "split: another column": split([[IMAGE]], ["picture"]),
    "split: a column in capitals": split([[IMAGE]], ["IMAGE"]),
    "split: a number as column": split([[IMAGE]], [0]),
    "split: null as column": split([[IMAGE]], [None]),
    "split: columns null": split([[IMAGE]], None),
    "split: two columns, one value": split([[IMAGE]], ["image", "age"]),
    "split: one column, two values": split([[IMAGE, 47]]),
    "split: the column twice": split([[IMAGE, IMAGE]], ["image", "image"]),
    "split: no rows": split([]),
    "split: an empty row": split([[]]),
    "split: data null": split(None),
    "split: data a string": split(IMAGE),
    "split: data an object": split({"image": IMAGE}),
    "split: data a number": split(3),
    "split: rows of different widths": split([[IMAGE], [IMAGE, IMAGE]]),
    "split: rows deeper": split([[[[IMAGE]]]]),
    "split: an unknown key": split([[IMAGE]], dtype="object"),
    "split: 17 rows": split([[IMAGE]] * 17),
    "split: 1000 rows": split([["AAAA"]] * 1000),
    "records: null": {"dataframe_records": None},
    "records: empty": {"dataframe_records": []},
    "records: an empty record": {"dataframe_records": [{}]},
    "records: a string": {"dataframe_records": IMAGE},
    "records: a number": {"dataframe_records": [7]},
    "records: another column": {"dataframe_records": [{"picture": IMAGE}]},
    "records: one lacks it": {"dataframe_records": [{"image": IMAGE}, {}]},
    "records: nested": {"dataframe_records": [{"image": {"image": IMAGE}}]},
    "instances: null": {"instances": None},
    "instances: empty": {"instances": []},
    "instances: numbers": {"instances": [1, 2, 3]},
    "instances: pixels": {"instances": [GREY[:9, :9].tolist()]},
    "instances: another column": {"instances": [{"picture": IMAGE}]},
    "inputs: null": {"inputs": None},
    "inputs: empty": {"inputs": {}},
    "inputs: an empty list": {"inputs": {"image": []}},
    "inputs: a number": {"inputs": 3},
    "inputs: another column": {"inputs": {"picture": [IMAGE]}},
    "inputs: pixels": {"inputs": GREY[:9, :9].tolist()},
    "params: a list": split([[IMAGE]]) | {"params": [True]},
    "params: a string": split([[IMAGE]]) | {"params": "explain"},
    "params: a number": split([[IMAGE]]) | {"params": 3},
    "explain: a string": split([[IMAGE]]) | {"params": {"explain": "yes"}},
    "explain: a list": split([[IMAGE]]) | {"params": {"explain": [True]}},
    "explain: an object": split([[IMAGE]]) | {"params": {"explain": {}}},
    "explain: a number": split([[IMAGE]]) | {"params": {"explain": 7}},
}

GOOD = good(PNG)
BROKEN: dict[str, bytes] = {  # bytes that are no JSON, or no JSON that anybody should take
    "empty": b"",
    "a blank": b" ",
    "nul": b"\0",
    "an image": PNG,
    "a brace": b"{",
    "cut": GOOD[: len(GOOD) // 2],
    "without its last brace": GOOD[:-1],
    "one brace more": GOOD + b"}",
    "twice": GOOD + GOOD,
    "text behind": GOOD + b" and more",
    "a comma at the end": GOOD[:-2] + b",}}",
    "single quotes": GOOD.replace(b'"', b"'"),
    "no quotes": GOOD.replace(b'"', b""),
    "a comment": GOOD[:-1] + b"/* */}",
    "a line break in a string": GOOD.replace(b'"image"', b'"im\nage"'),
    "a wrong escape": GOOD.replace(b'"image"', b'"im\\qage"'),
    "half an escape": GOOD.replace(b'"image"', b'"im\\u12"'),
    "nan": GOOD.replace(b'"' + IMAGE.encode() + b'"', b"NaN"),
    "infinity": GOOD.replace(b'"' + IMAGE.encode() + b'"', b"-Infinity"),
    "not utf-8": GOOD.replace(b'"image"', b'"\xff\xfe\xfa"'),
    "an overlong slash": GOOD.replace(b'"image"', b'"\xc0\xaf"'),
    "latin 1": GOOD.replace(b'"image"', '"bild gr\u00f6\u00dfe"'.encode("latin-1")),
    "a form": b"dataframe_split=1&image=2",
    "a table": b"image\nabc\n",
    "xml": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "yaml": b"dataframe_split: !!python/object/apply:os.system [id]",
    "a pickle": pickle.dumps(split([[IMAGE]])),
    "gzip": zlib.compress(GOOD),
    "true in capitals": b"True",
}

LENIENT: dict[str, bytes] = {  # MLflow's own server answers (200) or dies of them (500); the guarded one must refuse
    "a key twice": GOOD[:-1] + b"," + GOOD[1:],
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "utf-16": GOOD.decode().encode("utf-16"),
    "utf-32": GOOD.decode().encode("utf-32"),
    "a column more": _json(split([[IMAGE, 47]], ["image", "age"])),
    "a key beside": _json(split([[IMAGE]]) | {"threshold": 0}),
    "params: another one": _json(split([[IMAGE]]) | {"params": {"threshold": 0}}),
    "params: one more": _json(split([[IMAGE]]) | {"params": {"explain": True, "model": "../other"}}),
    "a number of 100 000 digits": GOOD.replace(b'"' + IMAGE.encode() + b'"', b"9" * 100_000),
    "100 000 brackets": b"[" * 100_000,
    "100 000 brackets and their ends": b"[" * 100_000 + b"]" * 100_000,
    "100 000 braces": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep rows": b'{"dataframe_split":{"columns":["image"],"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
}

KINDS: dict[str, bytes] = {
    **{f"body: {name}": body for name, body in BROKEN.items()},
    **{f"shape: {name}": _json(shape) for name, shape in SHAPES.items()},
    **{f"cell: {name}": _json(split([[cell]])) for name, cell in CELLS.items()},
    **{f"text: {name}": _json(split([[text]])) for name, text in TEXTS.items()},
    **{f"file: {name}": good(content) for name, content in FILES.items()},
    "second image: text": _json(split([[IMAGE], ["benign"]])),
    "second image: a file": good(PNG, FILES["a gif"]),
    "16 images, the last damaged": good(*[PNG] * 15, FILES["png: half"]),
}

_NAMES = st.text(max_size=8) | st.sampled_from(
    ("dataframe_split", "dataframe_records", "instances", "inputs", "params", "columns", "data", "image", "explain")
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(IMAGE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def mutations(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with one to eight bytes changed, pieces cut out, doubled or put in."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, max(len(changed) - 1, 0)))
        length = draw(st.integers(1, 64))
        way = draw(st.sampled_from(("change", "change", "cut", "end", "double", "put in")))
        if way == "change" and changed:
            changed[at] ^= draw(st.integers(1, 255))
        elif way == "cut":
            del changed[at : at + length]
        elif way == "end":
            del changed[at:]
        elif way == "double":
            changed[at:at] = changed[at : at + length]
        else:
            changed[at:at] = draw(st.binary(max_size=8))
    return bytes(changed)


ANY_FILE = st.sampled_from((PNG, JPEG, DICOM, RLE_DICOM, JPEG_DICOM)).flatmap(mutations)
GENERATED: st.SearchStrategy[bytes] = st.one_of(
    st.dictionaries(_NAMES, _VALUES, max_size=4).map(_json),
    _VALUES.map(_json),
    _VALUES.map(lambda rows: _json(split(rows))),
    _VALUES.map(lambda cell: _json(split([[cell]]))),
    _VALUES.map(lambda params: _json(split([[IMAGE]]) | {"params": params})),
    st.binary(max_size=200),
    mutations(GOOD),
    ANY_FILE.map(good),
    st.lists(ANY_FILE, min_size=2, max_size=3).map(lambda files: good(*files)),
)
