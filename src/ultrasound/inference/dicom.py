"""From a DICOM file to the picture that the scanner shows: one frame, cut to its tissue, 8 bits.

Only the values named in `KEYWORDS` are ever read, none of which says anything of the patient, and none of them is kept,
logged or put in an error. What lies outside of the tissue region, such as a name burnt into the picture, is cut off.
"""

from __future__ import annotations

import io
import logging
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.utils import pixel_array
from pydicom.tag import BaseTag, Tag

from ultrasound.errors import InputError
from ultrasound.images.preparation import MAX_PIXELS, SMALLEST, Box, Pixels
from ultrasound.inference import bombs

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # it and its modules log what they find in a file

NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)
# Not the deflated syntax: it is inflated as a whole before anything can be checked.
SYNTAXES = (*NATIVE, uid.RLELossless, *JPEG, *JPEG_2000)
GREYS = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
KEYWORDS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "PixelRepresentation", "NumberOfFrames", "RepresentativeFrameNumber", "RescaleIntercept",
    "RescaleSlope", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    *(f"{table}{part}" for table in PALETTE for part in ("Descriptor", "Data")),
    "SequenceOfUltrasoundRegions", "PixelData",
)  # fmt: skip
MOST_READS = 20_000  # of a file: each element takes one to three, and a few bytes could else become a large object
LONGEST = 1 << 18  # bytes of a value other than the pixels: twice the largest lookup table
TISSUE = PLANE = 1  # RegionDataType, RegionSpatialFormat


def frame(content: bytes, name: str) -> Image.Image:
    """Decode one frame of a DICOM file as mode L or RGB, as large as its tissue region.

    Of a cine the representative frame (0028,6010) is taken, else the one in the middle; the others are not decoded.
    Grey goes through the modality LUT or rescaling, and then the VOI LUT or the first window, as in DICOM PS3.3 C.11.1
    and C.11.2; what the window spans becomes 0..255. Without a window it is all that the bits stored can say which
    becomes 0..255, and so 8 bits stay as they are: to stretch from the darkest to the brightest pixel would undo the
    gain that the sonographer has set.
    MONOCHROME1 is inverted, palettes and YBR become RGB.

    The picture is cut to the two-dimensional tissue region that the scanner names (0018,6011), to the largest if there
    are several. A region that reaches over the edge is clipped; with less than `SMALLEST` pixels a side left, it is
    none. Without a region the frame stays whole.

    Args:
        content: the bytes of the file, with preamble.
        name: what to call the image in an error.

    Raises:
        InputError: the file is damaged, holds no image, a larger one than `MAX_PIXELS` samples, or one in a format or
            compression that is not read here.
    """
    try:
        with warnings.catch_warnings():  # pydicom's repeat what they found
            warnings.simplefilter("ignore")
            return _frame(_dataset(content, name), name)
    except InputError:
        raise
    except Exception:  # pydicom raises nearly all there are
        raise InputError(f"{name} is a damaged DICOM file: its image cannot be decoded") from None


class _Counted(io.BytesIO):
    """Bytes that can be read a limited number of times."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MOST_READS:
            raise ValueError("too many elements")
        return super().read(size)


def _dataset(content: bytes, name: str) -> Dataset:
    """Read what `KEYWORDS` names. pydicom's `dcmread` would inflate a deflated file before it can be refused."""
    file = _Counted(content)
    file.seek(132)  # behind preamble and DICM
    meta = FileMetaDataset(read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2))
    syntax = meta.TransferSyntaxUID
    if syntax not in SYNTAXES:
        raise InputError(
            f"{name} is a DICOM file with a compression that is not read here: save it uncompressed, or with RLE, "
            "JPEG baseline or JPEG 2000"
        )
    tags: list[BaseTag | int] = [Tag(keyword) for keyword in KEYWORDS]
    dataset = read_dataset(file, syntax.is_implicit_VR, syntax.is_little_endian, specific_tags=tags)
    if "PixelData" not in dataset:
        raise InputError(f"{name} is a DICOM file without an image, or its end is missing")
    for tag in tags[:-1]:
        value = getattr(dataset.get_item(tag), "value", None)
        if isinstance(value, bytes) and len(value) > LONGEST:
            raise ValueError("too long a value")
    dataset.file_meta = meta
    return dataset


def _frame(dataset: Dataset, name: str) -> Image.Image:
    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
    kind, bits = str(dataset.PhotometricInterpretation), int(dataset.BitsAllocated)
    is_colour = samples == 3 and kind in COLOURS and bits == 8
    if not is_colour and not (samples == 1 and kind in (*GREYS, "PALETTE COLOR") and bits in (8, 16)):
        raise InputError(f"{name} is a DICOM file with pixels that are not read here: save it as 8-bit grey or RGB")
    if rows * columns * samples > MAX_PIXELS:
        raise InputError(f"{name} has more than {MAX_PIXELS // samples // 1_000_000} megapixels")
    pixels = _decoded(dataset, name, rows, columns, samples * bits // 8)
    if kind == "PALETTE COLOR":
        image = Image.fromarray(_through_palette(pixels, dataset))
    elif is_colour:
        image = Image.fromarray(pixels)
    else:
        image = Image.fromarray(_greys(dataset).take(pixels.astype(np.int32) - _lowest(dataset), mode="clip"))
    region = _tissue(dataset, columns, rows)
    return image.crop(region) if region else image


def _decoded(dataset: Dataset, name: str, rows: int, columns: int, pixel_bytes: int) -> NDArray[np.integer]:
    """The stored values of the one frame: (rows, columns), or (rows, columns, 3) as RGB."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    chosen = dataset.get("RepresentativeFrameNumber")
    index = chosen - 1 if isinstance(chosen, int) and 1 <= chosen <= frames else frames // 2
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        encoded = get_frame(_Counted(dataset.PixelData), index, number_of_frames=frames)
        if syntax == uid.RLELossless:
            bombs.check_rle(encoded, name, rows * columns, pixel_bytes)
        else:
            _check_size(encoded, name, (columns, rows), is_2000=syntax in JPEG_2000)
        dataset.PixelData, dataset.NumberOfFrames, index = encapsulate([encoded]), 1, 0
    return pixel_array(dataset, index=index)


def _check_size(encoded: bytes, name: str, size: tuple[int, int], *, is_2000: bool) -> None:
    """The frame has a size of its own, which pydicom compares only once all is decoded."""
    if not is_2000:
        bombs.check_jpeg(encoded, name)
    elif not encoded.startswith(b"\xff\x4f\xff\x51"):  # boxes around it would name the size once more
        raise ValueError("no codestream")
    with Image.open(io.BytesIO(encoded), formats=["JPEG2000" if is_2000 else "JPEG"]) as image:
        if image.size != size:
            raise ValueError("not the size that the header promises")


def _lowest(dataset: Dataset) -> int:
    return -(1 << (dataset.BitsStored - 1)) if dataset.PixelRepresentation else 0


def _greys(dataset: Dataset) -> Pixels:
    """What each value that can be stored looks like, from the lowest on: (2 ** bits stored,)."""
    lowest = _lowest(dataset)
    values: NDArray[Any] = np.arange(lowest, lowest + (1 << min(dataset.BitsStored, 16)))
    if modality := dataset.get("ModalityLUTSequence"):
        values = _looked_up(values, modality[0].LUTDescriptor, modality[0].LUTData, dataset)
    elif dataset.get("RescaleSlope") is not None and dataset.get("RescaleIntercept") is not None:
        values = values * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    if voi := dataset.get("VOILUTSequence"):
        shown = _looked_up(values, voi[0].LUTDescriptor, voi[0].LUTData, dataset) / ((1 << voi[0].LUTDescriptor[2]) - 1)
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        shown = _windowed(values.astype(np.float64), dataset)
    else:
        shown = (values - values.min()) / float(values.max() - values.min())
    if not np.isfinite(shown).all():
        raise ValueError("no number")
    greys: Pixels = (shown.clip(0, 1) * 255).round().astype(np.uint8)
    return np.subtract(255, greys) if dataset.PhotometricInterpretation == "MONOCHROME1" else greys


def _windowed(values: NDArray[np.float64], dataset: Dataset) -> NDArray[np.float64]:
    """Values through the first window, 0..1: PS3.3 C.11.2.1.2.1 and C.11.2.1.3."""
    center, width = (float(np.ravel(value)[0]) for value in (dataset.WindowCenter, dataset.WindowWidth))
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width <= 0 or (function == "LINEAR" and width < 1):
        raise ValueError("no window")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    return (values - center) / width + 0.5 if width > 0 else (values > center).astype(np.float64)


def _through_palette(pixels: NDArray[np.integer], dataset: Dataset) -> Pixels:
    """(rows, columns) -> (rows, columns, 3): PS3.3 C.7.6.3.1.5, without segmented palettes."""
    channels = []
    for table in PALETTE:
        descriptor, data = dataset[f"{table}Descriptor"].value, dataset[f"{table}Data"].value
        channels.append((_looked_up(pixels, descriptor, data, dataset) >> max(descriptor[2] - 8, 0)).astype(np.uint8))
    return np.stack(channels, axis=-1)


def _looked_up(values: NDArray[Any], descriptor: list[int], data: object, dataset: Dataset) -> NDArray[np.uint16]:
    """Values through a lookup table: entries, first value, bits of an entry are its descriptor (PS3.3 C.11.1.1).

    pydicom's own functions take the index modulo 256 where the entries have 8 bits.
    """
    entries, first, bits = descriptor[0] or 1 << 16, descriptor[1], descriptor[2]
    if isinstance(data, bytes):
        is_narrow = bits <= 8 and len(data) <= entries + entries % 2  # two entries in a word
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(data, "u1" if is_narrow else f"{order}u2")
    table: NDArray[np.uint16] = np.asarray(data, np.uint16)[:entries]
    if len(table) != entries or not 8 <= bits <= 16:
        raise ValueError("no lookup table")
    return table.take(values.astype(np.int32) - first, mode="clip")


def _tissue(dataset: Dataset, width: int, height: int) -> Box | None:
    """The box of the largest tissue region (PS3.3 C.8.5.5); its last row and column belong to it."""
    boxes = []
    for region in dataset.get("SequenceOfUltrasoundRegions") or []:
        if (region.get("RegionSpatialFormat"), region.get("RegionDataType")) == (PLANE, TISSUE):
            left, top = int(region.RegionLocationMinX0), int(region.RegionLocationMinY0)
            right, bottom = int(region.RegionLocationMaxX1) + 1, int(region.RegionLocationMaxY1) + 1
            box = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
            if min(box[2] - box[0], box[3] - box[1]) >= SMALLEST:
                boxes.append(box)
    return max(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]), default=None)
