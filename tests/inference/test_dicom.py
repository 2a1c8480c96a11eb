"""DICOM as scanners write it: compressions, colours, windows, cines, regions; and what no log may show."""

import logging
import struct
import tracemalloc
import warnings

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_windowing

from tests.bad_bodies import COLOUR, FILES, GREY
from tests.dicoms import PATIENT, as_file, dicom, lookup, region
from ultrasound.errors import InputError
from ultrasound.inference import dicom as reader

NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
DEEP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # each value of 12 bits


def frame(content):
    return np.asarray(reader.frame(content, "Image 1"))


def refused(content):
    with pytest.raises(InputError) as caught:
        reader.frame(content, "Image 1")
    assert PATIENT not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("syntax", [*NATIVE, uid.RLELossless, uid.JPEG2000Lossless, uid.JPEG2000])
@pytest.mark.parametrize("pixels", [GREY, COLOUR, GREY[:33, :41], GREY.astype(np.uint16) * 257], ids=len)
def test_lossless_syntaxes_keep_every_pixel(syntax, pixels):
    expected = (pixels / 257).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    assert np.array_equal(frame(dicom(pixels, syntax=syntax)), expected)


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit])
def test_jpeg_is_decoded(syntax):
    assert np.abs(frame(dicom(GREY, syntax=syntax)).astype(int) - GREY).mean() < 3
    found = frame(dicom(COLOUR, syntax=syntax, photometric="YBR_FULL_422"))
    assert np.abs(found.astype(int) - COLOUR).mean() < 6


def test_ybr_becomes_rgb():
    grey = np.full((40, 40, 3), (90, 128, 128), np.uint8)  # no colour: Y is the level
    assert (frame(dicom(grey, photometric="YBR_FULL")) == 90).all()
    packed = np.tile(np.array([90, 90, 128, 128], np.uint8), 40 * 20).tobytes()
    assert (frame(dicom(grey, photometric="YBR_FULL_422", PixelData=packed)) == 90).all()


def test_planes_one_after_the_other():
    planes = np.ascontiguousarray(COLOUR.transpose(2, 0, 1)).tobytes()
    assert np.array_equal(frame(dicom(COLOUR, PlanarConfiguration=1, PixelData=planes)), COLOUR)


def test_monochrome1_is_inverted():
    assert np.array_equal(frame(dicom(GREY, photometric="MONOCHROME1")), 255 - GREY)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_is_resolved(bits):
    colours = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    tags = {}
    for number, name in enumerate(("Red", "Green", "Blue")):
        entries = colours[:, number] if bits == 8 else colours[:, number].astype("<u2") << 8
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        tags[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    assert np.array_equal(frame(dicom(GREY, photometric="PALETTE COLOR", **tags)), colours[GREY])


def test_more_than_8_bits_are_scaled_from_all_that_can_be_stored():
    assert np.array_equal(frame(dicom(DEEP, BitsStored=12, HighBit=11)), (DEEP / 4095 * 255).round())
    signed = (DEEP.astype(np.int32) - 2048).astype(np.int16)
    bits = {"BitsStored": 12, "HighBit": 11}
    assert np.array_equal(frame(dicom(signed, **bits)), (DEEP / 4095 * 255).round())
    assert frame(dicom(np.minimum(DEEP, 1000), **bits)).max() == 62  # not stretched to what is there


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("slope", [None, 2])
def test_windows_are_those_of_pydicom(function, slope):
    tags = {"WindowCenter": [1700, 5], "WindowWidth": [900, 9]} | ({"VOILUTFunction": function} if function else {})
    if slope:
        tags |= {"RescaleSlope": slope, "RescaleIntercept": -400}
    told = Dataset()
    told.BitsStored, told.PixelRepresentation, told.PhotometricInterpretation = 12, 0, "MONOCHROME2"
    told.update(tags)
    expected = apply_windowing(apply_modality_lut(DEEP, told), told)
    low, high = (np.array([0, 4095]) * slope - 400) if slope else (0, 4095)
    expected = ((expected - low) / (high - low) * 255).round()
    found = frame(dicom(DEEP, BitsStored=12, HighBit=11, **tags))
    assert np.abs(found - expected).max() <= 1 and len(np.unique(found)) > 100


def test_a_negative_slope_inverts_once():
    found = frame(dicom(GREY, RescaleSlope=-1, RescaleIntercept=255, WindowCenter=128, WindowWidth=256))
    assert np.array_equal(found, 255 - GREY)


def test_lookup_tables():
    modality = lookup([4095 - value for value in range(4096)], 0, 12)
    found = frame(dicom(DEEP, BitsStored=12, HighBit=11, ModalityLUTSequence=[modality]))
    assert np.array_equal(found, ((4095 - DEEP) / 4095 * 255).round())
    voi = lookup([value >> 4 for value in range(4096)], 0, 8)  # more entries than 8 bits can count
    assert np.array_equal(frame(dicom(DEEP, BitsStored=12, HighBit=11, VOILUTSequence=[voi])), DEEP >> 4)
    ends = lookup(range(100, 200), 50, 8)  # values below and above the table take its ends
    assert np.array_equal(frame(dicom(GREY, VOILUTSequence=[ends])), GREY.clip(50, 149) + 50)


def test_a_window_of_width_1_is_a_threshold():
    assert np.array_equal(frame(dicom(GREY, WindowCenter=100, WindowWidth=1)), np.where(GREY > 99, 255, 0))


@pytest.mark.parametrize("syntax", [*NATIVE, uid.RLELossless, uid.JPEG2000Lossless])
def test_of_a_cine_one_frame_is_taken(syntax):
    cine = np.stack([np.full((40, 50), 20 * number, np.uint8) for number in range(7)])
    assert (frame(dicom(cine, frames=7, syntax=syntax)) == 60).all()  # the middle
    assert (frame(dicom(cine, frames=7, syntax=syntax, RepresentativeFrameNumber=2)) == 20).all()  # counts from 1
    assert (frame(dicom(cine, frames=7, syntax=syntax, RepresentativeFrameNumber=8)) == 60).all()


def test_the_other_frames_are_not_decoded():
    good = as_file(GREY, "JPEG2000", no_jp2=True)
    content = dicom(GREY, syntax=uid.JPEG2000Lossless, encoded=[b"\0" * 20, good, b"\0" * 20], NumberOfFrames=3)
    assert np.array_equal(frame(content), GREY)


@pytest.mark.parametrize(
    ("regions", "box"),
    [
        ([region(10, 20, 109, 99)], (10, 20, 110, 100)),
        ([region(10, 20, 60, 70), region(70, 10, 150, 110), region(0, 0, 40, 40)], (70, 10, 151, 111)),
        ([region(10, 20, 160, 120)], (10, 20, 160, 120)),  # one too many, as some scanners write
        ([region(10, 20, 5000, 2**31)], (10, 20, 160, 120)),
        ([region(500, 500, 900, 900)], None),
        ([region(10, 20, 20, 30)], None),  # a mark, no tissue
        ([region(100, 90, 20, 10)], None),
        ([region(10, 20, 109, 99, kind=3)], None),  # a spectrum
        ([region(10, 20, 109, 99, form=2)], None),  # M mode
        ([region(0, 0, 159, 119, kind=2), region(10, 20, 109, 99)], (10, 20, 110, 100)),
        ([], None),
    ],
)  # fmt: skip
def test_the_frame_is_cut_to_its_tissue(regions, box):
    left, top, right, bottom = box or (0, 0, 160, 120)
    for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.RLELossless):
        assert np.array_equal(frame(dicom(GREY, regions=regions, syntax=syntax)), GREY[top:bottom, left:right])


def test_a_name_burnt_in_above_the_tissue_is_cut_off():
    marked = GREY.copy()
    marked[:20] = 255
    assert np.array_equal(frame(dicom(marked, regions=[region(0, 20, 159, 119)])), GREY[20:])


def test_no_log_and_no_warning_shows_what_is_in_a_file(caplog, capfd):
    secret = dicom(GREY, syntax=uid.JPEGBaseline8Bit, NumberOfFrames=3, PatientID=PATIENT)
    odd = dicom(GREY, WindowCenter=50, WindowWidth=0).replace(b"MONOCHROME2 ", b"SECRET^NAME ")
    unknown = dicom(GREY, SpecificCharacterSet="ISO_IR 100").replace(b"ISO_IR 100", b"SECRETNAME")  # pydicom repeats it
    with warnings.catch_warnings(record=True) as seen, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        assert np.array_equal(frame(unknown), GREY)
        for content in (secret, odd, dicom(GREY)[:3000], *FILES.values()):
            if content[128:132] == b"DICM":
                refused(content)
    assert not seen and not caplog.records
    assert capfd.readouterr() == ("", "")


def test_sentences():
    assert refused(dicom(GREY, Rows=65_535, Columns=65_535)) == "Image 1 has more than 25 megapixels"
    assert refused(dicom(COLOUR, Rows=5000, Columns=5000)) == "Image 1 has more than 8 megapixels"
    assert "pixels that are not read here" in refused(dicom(GREY, SamplesPerPixel=4))
    assert "damaged DICOM" in refused(dicom(GREY, PixelData=GREY.tobytes()[:-2]))
    lacking = region(0, 0, 100, 100)
    del lacking.RegionLocationMaxX1
    assert "damaged DICOM" in refused(dicom(GREY, regions=[lacking]))


def test_rle_that_becomes_more_or_less_than_the_frame_is_refused():
    header = struct.pack("<16L", 1, 64, *[0] * 14)
    for runs, is_good in ((150, True), (149, False), (301, False), (3_000_000, False)):  # of 128 pixels each
        content = dicom(GREY, syntax=uid.RLELossless, encoded=[header + b"\x81\x07" * runs])
        if is_good:
            assert (frame(content) == 7).all()
        else:
            assert "not as many" in refused(content)


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEG2000Lossless])
def test_a_frame_larger_than_the_header_says_is_not_decoded(syntax):
    large = np.zeros((6000, 6000), np.uint8)
    encoded = as_file(large, "JPEG") if syntax == uid.JPEGBaseline8Bit else as_file(large, "JPEG2000", no_jp2=True)
    content = dicom(GREY, syntax=syntax, encoded=[encoded])
    tracemalloc.start()
    assert "damaged DICOM" in refused(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
