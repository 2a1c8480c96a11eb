"""What a client may send: strict base64 of PNG, JPEG or DICOM; all else soon gets one sentence, and nothing escapes."""

import base64
import io
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

from tests import bad_bodies
from tests.bad_bodies import COLOUR, DICOM, FILES, GREY, JPEG, PNG, TEXTS
from tests.dicoms import PATIENT, as_file
from ultrasound.errors import InputError
from ultrasound.images.preparation import open_image
from ultrasound.inference import scan

NAME = "Image 1"


def opened(content):
    return np.asarray(scan.open_scan(content, NAME))


def refused(content):
    with pytest.raises(InputError) as caught:
        scan.open_scan(content, NAME)
    sentence = str(caught.value)
    assert sentence.startswith(NAME) and not sentence.endswith(".") and "\n" not in sentence
    assert len(sentence) < 160 and sentence.isascii() and PATIENT not in sentence
    return sentence


def test_a_scan_is_the_same_image_as_in_training():
    assert np.array_equal(opened(PNG), GREY)
    assert np.array_equal(opened(DICOM), GREY)
    assert np.array_equal(opened(as_file(COLOUR, "PNG")), COLOUR)
    for content in (JPEG, as_file(COLOUR, "JPEG"), as_file(GREY, "JPEG", progressive=True)):
        assert np.array_equal(opened(content), open_image(content))


def test_other_pixel_formats_become_grey_or_rgb():
    image = Image.fromarray(COLOUR)
    for mode, form in (("RGBA", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("CMYK", "JPEG")):
        assert scan.open_scan(as_file(np.asarray(image), form), NAME).mode == "RGB"
        found = scan.open_scan(_saved(image.convert(mode), form), NAME)
        assert found.mode == ("L" if mode == "1" else "RGB") and found.size == image.size
    deep = as_file(GREY.astype(np.uint16) * 257, "PNG")
    assert np.array_equal(opened(deep), GREY)


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert scan.open_scan(_saved(Image.fromarray(GREY), "JPEG", exif=exif), NAME).size == (160, 120)


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_gets_one_sentence_soon(name):
    started = time.process_time()
    refused(FILES[name])
    assert time.process_time() - started < 2


def test_a_bomb_takes_little_memory():
    for name in (
        "png: text that inflates",
        "dicom: rle that inflates",
        "dicom: 900 000 items",
        "dicom: deflated zeros",
    ):
        tracemalloc.start()
        refused(FILES[name])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 40_000_000, name


@pytest.mark.parametrize("name", TEXTS)
def test_a_bad_text_gets_one_sentence(name):
    with pytest.raises(InputError, match=rf"^{NAME} (must be|is) "):
        scan.open_scan(scan.decode(TEXTS[name], NAME), NAME)


@pytest.mark.parametrize("value", [*bad_bodies.CELLS.values(), float("nan"), b"AAAA", np.str_, object()])
def test_what_is_no_string_is_refused(value):
    with pytest.raises(InputError, match=f"^{NAME} must be a base64 string of a PNG, JPEG or DICOM file$"):
        scan.decode(value, NAME)


def test_the_limit_is_8_mb():
    largest = PNG + bytes(scan.MAX_BYTES - len(PNG))
    assert scan.decode(base64.b64encode(largest).decode(), NAME) == largest
    assert np.array_equal(opened(largest), GREY)
    for more in (1, 2, 3):
        with pytest.raises(InputError, match=f"^{NAME} is larger than 8 MB$"):
            scan.decode(base64.b64encode(largest + bytes(more)).decode(), NAME)
    assert refused(largest + b"\0") == f"{NAME} is larger than 8 MB"


def test_sentences_say_what_is_wrong():
    assert refused(FILES["a gif"]) == f"{NAME} is not a PNG, JPEG or DICOM file"
    assert refused(FILES["png: 100 megapixels"]) == f"{NAME} has more than 25 megapixels"
    assert refused(FILES["jpeg: 100 megapixels"]) == f"{NAME} has more than 25 megapixels"
    assert "animation" in refused(FILES["png: an animation"])
    assert "PNG and a DICOM" in refused(FILES["png: and dicom"])
    assert "passes" in refused(FILES["jpeg: 4000 passes"])
    assert "truncated" in refused(FILES["png: half"]) and "truncated" in refused(FILES["jpeg: half"])
    assert "without an image" in refused(FILES["dicom: without pixels"])
    assert "compression" in refused(FILES["dicom: deflated"]) and "compression" in refused(FILES["dicom: jpeg ls"])


@settings(max_examples=500, derandomize=True, deadline=2000, suppress_health_check=list(HealthCheck))
@given(bad_bodies.ANY_FILE)
def test_a_damaged_file_is_an_image_or_a_sentence(content):
    answer = _answer(content)
    if isinstance(answer, str):
        assert answer.startswith(NAME)
    else:
        assert answer.mode in ("L", "RGB") and answer.width * answer.height <= 25_000_000


def test_there_are_many_kinds_of_bad_bodies():
    assert len(bad_bodies.KINDS) > 200
    assert len(set(bad_bodies.KINDS.values())) == len(bad_bodies.KINDS)  # no two are the same


def _answer(content):
    try:
        return scan.open_scan(content, NAME)
    except InputError as error:
        return str(error)


def _saved(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
