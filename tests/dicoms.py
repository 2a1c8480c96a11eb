"""DICOM files made for tests, by pydicom's writer: a frame or a cine in any form that scanners write."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from pydicom import dcmwrite, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder

PATIENT = "SECRET^NAME"  # in each file; no error and no log may show it


def dicom(
    pixels: np.ndarray,
    *,
    syntax: str = uid.ExplicitVRLittleEndian,
    photometric: str | None = None,
    frames: int = 1,
    encoded: Sequence[bytes] | None = None,
    regions: Sequence[Dataset] = (),
    **tags: Any,
) -> bytes:
    """Write a file.

    Args:
        pixels: (rows, columns) or (rows, columns, 3), uint8, uint16 or int16; with `frames` > 1 one more axis before.
        syntax: transfer syntax; RLE, JPEG and JPEG 2000 are encoded here.
        photometric: MONOCHROME2 or RGB unless given. The pixels are written as they are.
        frames: what the file says.
        encoded: compressed frames, instead of those made of `pixels`.
        regions: of `region`.
        tags: keyword -> value, over all others; None leaves one out.
    """
    syntax = uid.UID(syntax)
    each = pixels if frames > 1 else pixels[None]
    is_colour = each.ndim == 4
    dataset = Dataset()
    dataset.PatientName = PATIENT
    dataset.Modality = "US"
    dataset.SOPClassUID = uid.UltrasoundImageStorage if frames == 1 else uid.UltrasoundMultiFrameImageStorage
    dataset.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    dataset.SamplesPerPixel = 3 if is_colour else 1
    dataset.PhotometricInterpretation = photometric or ("RGB" if is_colour else "MONOCHROME2")
    if is_colour:
        dataset.PlanarConfiguration = 0
    if frames > 1:
        dataset.NumberOfFrames = frames
    dataset.Rows, dataset.Columns = each.shape[1:3]
    dataset.BitsAllocated = dataset.BitsStored = 8 * each.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(each.dtype.kind == "i")
    if regions:
        dataset.SequenceOfUltrasoundRegions = list(regions)
    if syntax.is_encapsulated:
        dataset.PixelData = encapsulate(encoded or [_encoded(frame, syntax) for frame in each])
        dataset["PixelData"].is_undefined_length = True
    else:
        raw = (each if syntax.is_little_endian else each.byteswap()).tobytes()
        dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OW" if each.itemsize == 2 else "OB"
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    buffer = io.BytesIO()
    dataset.file_meta = meta
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def region(left: int, top: int, right: int, bottom: int, *, kind: int = 1, form: int = 1) -> Dataset:
    """A region of the frame; its last column and row belong to it. Kind 1 is tissue, form 1 two-dimensional."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType = form, kind
    item.RegionLocationMinX0, item.RegionLocationMinY0 = left, top
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = right, bottom
    return item


def lookup(table: Sequence[int], first: int, bits: int) -> Dataset:
    """An item of a lookup table sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(table), first, bits])
    item.add_new("LUTData", "OW", np.asarray(table, "<u2").tobytes())
    return item


def raw(*elements: bytes, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    """A file of elements written by hand, for what pydicom would refuse to write."""
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    return b"\0" * 128 + b"DICM" + short(0x0002, 0x0010, b"UI", value) + b"".join(elements)


def short(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    """An element in explicit little endian with a length of two bytes."""
    return struct.pack("<HH2sH", group, number, kind, len(value)) + value


def as_file(pixels: np.ndarray, form: str, **options: Any) -> bytes:
    """PNG, JPEG or JPEG2000 (the bare codestream) of (rows, columns) or (rows, columns, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def _encoded(frame: np.ndarray, syntax: uid.UID) -> bytes:
    if syntax == uid.RLELossless:
        samples, kind = (3, "RGB") if frame.ndim == 3 else (1, "MONOCHROME2")
        return RLELosslessEncoder.encode(
            frame, rows=frame.shape[0], columns=frame.shape[1], samples_per_pixel=samples, number_of_frames=1,
            bits_allocated=8 * frame.itemsize, bits_stored=8 * frame.itemsize, photometric_interpretation=kind,
            pixel_representation=0, planar_configuration=0,
        )  # fmt: skip
    if syntax in (uid.JPEG2000Lossless, uid.JPEG2000):
        return as_file(frame, "JPEG2000", no_jp2=True, irreversible=False)
    return as_file(frame, "JPEG", quality=95)
