import hashlib
import io
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

import ultrasound
from ultrasound.errors import InputError
from ultrasound.images.preparation import Preparation, content_box, lesion, open_image, pixel_hash
from ultrasound.images.sources.phantom import phantom

GREY = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encode(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_header(width, height):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("options", [{}, {"compress_level": 0}, {"optimize": True}])
def test_grey_and_colour_images_keep_their_pixels(options):
    assert np.array_equal(open_image(encode(Image.fromarray(GREY), **options)), GREY)
    assert np.array_equal(open_image(encode(Image.fromarray(COLOUR), **options)), COLOUR)


def test_16_bit_grey_is_scaled_and_not_clipped():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    content = encode(Image.fromarray(values))
    assert Image.open(io.BytesIO(content)).mode.startswith("I")  # truly 16 bits
    opened = open_image(content)
    assert opened.mode == "L"
    assert np.abs(np.asarray(opened) - values / 257).max() <= 0.5


def test_a_palette_is_resolved_to_its_colours():
    indexed = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8)).convert("P")
    indexed.putpalette([200, 200, 200, 255, 0, 0, 0, 0, 255])
    opened = open_image(encode(indexed))
    assert opened.mode == "RGB"
    assert np.asarray(opened).tolist() == [[[200, 200, 200], [255, 0, 0]], [[0, 0, 255], [255, 0, 0]]]


def test_an_alpha_channel_is_dropped():
    alpha = np.random.default_rng(2).integers(0, 256, (40, 60, 1), dtype=np.uint8)
    opened = open_image(encode(Image.fromarray(np.concatenate([COLOUR, alpha], axis=2))))
    assert opened.mode == "RGB"
    assert np.array_equal(opened, COLOUR)


def test_grey_with_alpha_becomes_the_grey():
    content = encode(Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(255 - GREY))))
    assert np.array_equal(np.asarray(open_image(content).convert("L")), GREY)


def test_a_1_bit_image_becomes_black_and_white():
    assert np.array_equal(np.asarray(open_image(encode(Image.fromarray(GREY > 99))).convert("L")) == 255, GREY > 99)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_is_read(mode):
    smooth = Image.fromarray(GREY).resize((8, 6)).resize((160, 120))
    opened = open_image(encode(smooth.convert(mode), "JPEG", quality=95))
    assert opened.mode == ("L" if mode == "L" else "RGB")
    assert np.abs(np.asarray(opened.convert("L"), dtype=float) - np.asarray(smooth)).mean() < 3


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 20_000), (5_001, 5_000), (2**31 - 1, 1)])
def test_an_image_of_too_many_pixels_is_refused_from_its_header_alone(size):
    with pytest.raises(InputError, match=r"scan\.png has more than 25 megapixels"):
        open_image(png_header(*size), "scan.png")


def test_a_real_image_of_100_megapixels_is_refused_fast(tmp_path):
    file = tmp_path / "huge.png"
    Image.new("1", (10_000, 10_000)).save(file)
    begun = time.process_time()
    with pytest.raises(InputError, match="25 megapixels"):
        open_image(file)
    assert time.process_time() - begun < 0.1


def test_the_refusal_of_a_large_image_is_all_that_a_user_sees(tmp_path):
    (tmp_path / "huge.png").write_bytes(png_header(10_000, 10_000))
    script = "import pathlib; from ultrasound.images.preparation import *\n"
    script += "try: open_image(pathlib.Path('huge.png'))\nexcept InputError as error: print(error)"
    source = Path(ultrasound.__file__).parents[1]
    shown = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout == "image has more than 25 megapixels\n"
    assert shown.stderr == ""


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_is_refused(keep, kind):
    content = encode(Image.fromarray(COLOUR), kind)
    with pytest.raises(InputError, match="scan is damaged"):
        open_image(content[: int(len(content) * keep)], "scan")


def test_a_png_whose_later_chunks_are_garbage_is_refused():
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in GREY))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60, 40, 8, 0, 0, 0, 0))
    parts = [chunk(b"IDAT", data[:500]), chunk(b"IDAT", data[500:]), chunk(b"IEND", b"")]
    assert np.array_equal(open_image(b"\x89PNG\r\n\x1a\n" + header + b"".join(parts)), GREY)
    parts[1] = chunk(b"\xff\xff\xff\xff", data[500:])
    with pytest.raises(InputError, match="scan is damaged"):
        open_image(b"\x89PNG\r\n\x1a\n" + header + b"".join(parts), "scan")


@pytest.mark.parametrize("content", [b"", b"plain text", b"\x89PNG", encode(Image.fromarray(GREY), "BMP")])
def test_what_is_no_png_or_jpeg_is_refused(content):
    with pytest.raises(InputError, match="scan is not a PNG or JPEG image"):
        open_image(content, "scan")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match=r"empty\.png is not a PNG or JPEG image"):
        open_image(tmp_path / "empty.png", "empty.png")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match="scan is missing"):
        open_image(tmp_path / "gone.png", "scan")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_anywhere_is_refused_or_harmless_but_never_another_error(data):
    content = bytearray(encode(Image.fromarray(COLOUR), data.draw(st.sampled_from(["PNG", "JPEG"]))))
    for position in data.draw(st.lists(st.integers(0, 400), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    try:
        assert open_image(bytes(content)).mode in {"L", "RGB"}
    except InputError as error:
        assert str(error).startswith("image ")  # noqa: PT017


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(32, 80), st.sampled_from(["L", "RGB", "1"]),
    st.integers(0, 255), st.booleans(),
)  # fmt: skip
def test_any_image_becomes_a_grey_square_of_the_wanted_size_and_keeps_its_brightness(
    width, height, size, mode, level, crop
):
    image = Image.new("L", (width, height), level).convert(mode)
    prepared = Preparation(size, crop).image(encode(image))
    assert prepared.shape == (size, size)
    assert prepared.dtype == np.uint8
    if mode != "1":
        assert np.unique(prepared).tolist() == [level]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(32, 80), st.integers(1, 255))
def test_padding_keeps_the_shape_of_the_scan_and_puts_it_in_the_middle(width, height, size, level):
    prepared = Preparation(size, fit="pad").grey(Image.new("L", (width, height), level))
    assert prepared.shape == (size, size)
    assert set(np.unique(prepared)) <= {0, level}
    rows, columns = np.flatnonzero(prepared.any(axis=1)), np.flatnonzero(prepared.any(axis=0))
    assert max(len(rows), len(columns)) == size
    assert len(rows) == pytest.approx(size * height / max(width, height), abs=1)
    assert len(columns) == pytest.approx(size * width / max(width, height), abs=1)
    for places in (rows, columns):
        assert abs(places[0] - (size - 1 - places[-1])) <= 1


def test_image_and_mask_stay_aligned_when_padded():
    _, mask = SCANS["benign"]
    image = Image.new("L", mask.size, 100)
    image.paste(250, mask=mask)
    preparation = Preparation(128, fit="pad")
    assert ((preparation.grey(image) > 175) == preparation.mask([mask], image)).mean() > 0.99


def test_preparation_is_deterministic_and_the_same_from_bytes_and_path(tmp_path):
    for name, image in (("grey.png", GREY), ("colour.png", COLOUR), ("scan.jpg", GREY)):
        Image.fromarray(image).save(tmp_path / name)
        first = Preparation(48).image(tmp_path / name)
        assert np.array_equal(first, Preparation(48).image(tmp_path / name))
        assert np.array_equal(first, Preparation(48).image((tmp_path / name).read_bytes()))


def test_grey_stored_in_one_channel_or_three_is_prepared_alike():
    one, three = (encode(Image.fromarray(GREY).convert(mode)) for mode in ("L", "RGB"))
    assert np.array_equal(Preparation(48).image(one), Preparation(48).image(three))


def test_enlarging_averages_neighbours_and_keeps_their_places():
    quarters = np.kron(np.array([[10, 250], [90, 170]], dtype=np.uint8), np.ones((20, 30), dtype=np.uint8))
    prepared = Preparation(64).image(encode(Image.fromarray(quarters)))
    assert prepared[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [10, 250, 90, 170]
    assert prepared[32, 10] in range(11, 90)


def test_masks_are_merged_by_or():
    first, second = np.zeros((2, 64, 64), dtype=bool)
    first[10:30, 5:20] = second[20:50, 15:60] = True
    masks = [Image.fromarray(first), Image.fromarray(second).convert("RGBA")]
    merged = Preparation(64).mask(masks, Image.new("L", (64, 64)))
    assert merged.dtype == bool
    assert np.array_equal(merged, first | second)


def test_no_mask_and_an_empty_mask_are_empty():
    for masks in ([], [Image.new("1", (60, 40))]):
        merged = Preparation(32).mask(masks, Image.new("L", (60, 40)))
        assert merged.shape == (32, 32)
        assert not merged.any()


def test_a_resized_mask_keeps_its_share_and_place():
    marked = np.zeros((400, 600), dtype=bool)
    marked[100:300, 150:450] = True
    merged = Preparation(64).mask([Image.fromarray(marked)], Image.new("L", (600, 400)))
    assert merged.mean() == pytest.approx(marked.mean(), abs=0.02)
    assert merged[16:48, 16:48].all()


def test_a_prepared_mask_pixel_is_lesion_where_most_of_its_area_is():
    marked = np.zeros((64, 64), dtype=bool)
    marked[0, 0] = marked[10, 10:12] = marked[11, 10] = True  # one of four pixels, three of four
    merged = Preparation(32).mask([Image.fromarray(marked)], Image.new("L", (64, 64)))
    assert np.argwhere(merged).tolist() == [[5, 5]]


def test_only_pixels_above_half_are_lesion():
    assert lesion(Image.fromarray(np.array([[0, 127, 128, 255]], dtype=np.uint8))).tolist() == [[0, 0, 1, 1]]


def test_the_pixel_hash_is_of_size_and_rgb_bytes():
    expected = hashlib.sha256(b"60x40:" + COLOUR.tobytes()).hexdigest()
    assert pixel_hash(open_image(encode(Image.fromarray(COLOUR), compress_level=0))) == expected
    assert pixel_hash(open_image(encode(Image.fromarray(COLOUR), compress_level=9))) == expected
    assert pixel_hash(Image.fromarray(GREY)) == pixel_hash(Image.fromarray(GREY).convert("RGB"))
    assert pixel_hash(Image.fromarray(GREY)) != pixel_hash(Image.fromarray(GREY.reshape(60, 40)))


SCANS = {label: phantom(label, 1, seed=4) for label in ("benign", "malignant", "normal")}


def framed(image, left, top, right, bottom):
    """The image with black borders."""
    wide = Image.new(image.mode, (left + image.width + right, top + image.height + bottom))
    wide.paste(image, (left, top))
    return wide


def box_of(image):
    return content_box(np.asarray(image))


def whole(image):
    return (0, 0, image.width, image.height)


def test_crop_is_off_unless_asked_for():
    """So that what was saved before there was a choice is loaded as it was made."""
    assert Preparation(**{"size": 64}) == Preparation(64, crop=False)
    bordered = framed(SCANS["benign"][0], 50, 0, 0, 0)
    assert np.array_equal(Preparation(64).grey(bordered), bordered.resize((64, 64), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("label", SCANS)
def test_a_scan_without_a_border_is_not_cropped(label):
    image, mask = SCANS[label]
    assert box_of(image) == whole(image)
    assert np.array_equal(Preparation(64, crop=True).grey(image), Preparation(64).grey(image))
    assert np.array_equal(Preparation(64, crop=True).mask([mask], image), Preparation(64).mask([mask], image))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(SCANS)), st.tuples(*[st.integers(0, 400)] * 4), st.integers(0, 8))
def test_a_border_of_any_width_changes_neither_the_prepared_image_nor_its_mask(label, widths, noise):
    image, mask = SCANS[label]
    bordered, level = framed(image, *widths), framed(Image.new("1", image.size, 1), *widths)
    if noise:  # as compression leaves it
        black = np.random.default_rng(noise).integers(0, noise + 1, bordered.size[::-1], dtype=np.uint8)
        bordered = Image.composite(bordered, Image.fromarray(black), level.convert("L"))
    left, top, _, _ = widths
    assert box_of(bordered) == (left, top, left + image.width, top + image.height)
    preparation = Preparation(64, crop=True)
    assert np.array_equal(preparation.grey(bordered), preparation.grey(image))
    assert np.array_equal(preparation.mask([framed(mask, *widths)], bordered), preparation.mask([mask], image))


def test_of_a_compressed_border_no_more_than_a_block_is_left():
    image, _ = SCANS["malignant"]
    bordered = open_image(encode(framed(image, 70, 20, 45, 33), "JPEG", quality=85))
    left, top, right, bottom = box_of(bordered)
    assert 62 <= left <= 70
    assert 12 <= top <= 20
    assert 70 + image.width <= right <= 78 + image.width
    assert 20 + image.height <= bottom <= 28 + image.height


def test_image_and_mask_stay_aligned_under_crop():
    _, mask = SCANS["benign"]
    image = Image.new("L", mask.size, 100)
    image.paste(250, mask=mask)  # the lesion shines, so that the image itself tells where it is
    bordered = framed(image, 90, 30, 10, 60)
    for crop, size in ((False, bordered.size), (True, image.size)):
        preparation = Preparation(128, crop)
        shining = preparation.grey(bordered) > 175
        merged = preparation.mask([framed(mask, 90, 30, 10, 60)], bordered)
        assert (shining == merged).mean() > 0.99
        assert merged.mean() == pytest.approx(np.asarray(mask).sum() / np.prod(size), rel=0.02)


def test_the_server_crops_as_training_does(tmp_path):
    bordered = framed(SCANS["malignant"][0], 40, 25, 60, 10)
    bordered.save(tmp_path / "scan.png")
    preparation = Preparation(96, crop=True)
    trained = preparation.grey(open_image(tmp_path / "scan.png"))
    assert np.array_equal(preparation.image((tmp_path / "scan.png").read_bytes()), trained)
    assert np.array_equal(preparation.image(encode(bordered.convert("RGB"))), trained)
    assert not np.array_equal(Preparation(96).grey(bordered), trained)


def test_a_ruler_with_ticks_and_numbers_is_cut():
    image, _ = SCANS["benign"]
    screen = framed(image, 60, 40, 80, 30)
    draw, font = ImageDraw.Draw(screen), ImageFont.load_default(14)
    for depth, y in enumerate(range(45, 40 + image.height, 40)):
        draw.line((screen.width - 30, y, screen.width - 20, y), 200, 2)
        draw.text((screen.width - 60, y - 8), str(depth), 220, font)
    draw.line((screen.width - 20, 45, screen.width - 20, 35 + image.height), 180)
    for x in range(70, screen.width - 90, 50):
        draw.line((x, screen.height - 12, x, screen.height - 6), 200, 2)
    assert box_of(screen) == (60, 40, 60 + image.width, 40 + image.height)


@pytest.mark.parametrize("outer", [0, 12])
def test_a_grey_bar_beside_the_scan_is_cut(outer):
    image, _ = SCANS["malignant"]
    screen = framed(image, 35 + outer, 0, 0, 0)
    levels = np.array(screen)
    levels[20:220, outer : outer + 16] = np.linspace(255, 0, 200).astype(np.uint8)[:, None]
    expected = (35 + outer, 0, 35 + outer + image.width, image.height)
    assert content_box(levels) == expected
    assert content_box(levels[:, ::-1]) == (0, 0, image.width, image.height)


def test_letters_above_and_below_the_scan_are_cut():
    screen = framed(SCANS["normal"][0], 0, 50, 0, 40)
    draw, font = ImageDraw.Draw(screen), ImageFont.load_default(16)
    draw.text((30, 15), "LOGIQ E9", 230, font)
    draw.text((200, screen.height - 30), "12 Hz", 230, font)
    assert box_of(screen) == (0, 50, screen.width, screen.height - 40)


@pytest.mark.parametrize("place", [(0, 60, 150, 999), (200, 60, 400, 999), (0, 12, 999, 340)])
def test_a_black_shadow_is_not_cut(place):
    """It reaches the bottom or a side, or spans the whole width."""
    image = SCANS["malignant"][0].copy()
    ImageDraw.Draw(image).rectangle(place, 0)
    assert box_of(image) == whole(image)


def test_dark_tissue_with_a_little_speckle_is_not_cut():
    image, _ = SCANS["malignant"]
    levels = np.array(image)
    levels[-120:] = 1
    for row in range(len(levels) - 120, len(levels)):
        levels[row, row * 7 % image.width] = 20  # one dim speckle a row
    assert content_box(levels) == whole(image)


@pytest.mark.parametrize("size", [(1, 1), (5, 400), (40, 40), (300, 200)])
def test_an_image_that_is_all_black_is_left_as_it_is(size):
    assert box_of(Image.new("L", size)) == (0, 0, *size)
    lettered = Image.new("L", size)
    ImageDraw.Draw(lettered).text((10, 10), "RT", 255)
    assert box_of(lettered) == (0, 0, *size)


def test_a_large_image_of_many_spots_is_cropped_fast():
    levels = np.zeros((5000, 5000), dtype=np.uint8)
    levels[100:-100:2, 100:-100:2] = 255
    begun = time.process_time()
    assert content_box(levels) == (100, 100, 4899, 4899)
    assert time.process_time() - begun < 5


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(0, 2**32 - 1), st.sampled_from([1, 10, 60, 255]))
def test_the_box_is_never_empty_and_lies_within_the_image(width, height, seed, brightest):
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, brightest + 1, (height, width), dtype=np.uint8)
    levels[rng.integers(0, height) :] = 0
    levels[:, : rng.integers(0, width)] = 0
    left, top, right, bottom = content_box(levels)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert (left, top, right, bottom) == content_box(levels.copy())


@pytest.mark.parametrize(("fit", "crop"), [("pad", False), ("stretch", False), ("pad", True)])
@pytest.mark.parametrize("sides", [(300, 200), (190, 310), (64, 64)])
def test_what_is_seen_in_the_prepared_image_lies_there_in_the_image(fit, crop, sides):
    width, height = sides
    grey = np.full((height, width), 60, np.uint8)
    if crop:
        grey[:, : width // 5] = 0
    row, column = height // 4, width * 3 // 4
    grey[row - 6 : row + 7, column - 6 : column + 7] = 255
    image = Image.fromarray(grey)
    preparation = Preparation(96, crop=crop, fit=fit)
    spot = (preparation.grey(image) > 150).astype(np.uint8) * 255
    back = preparation.back(spot, preparation.placed(image)[1])
    assert back.shape == (height, width)
    rows, columns = np.nonzero(back > 127)
    assert abs(rows.mean() - row) < 3 and abs(columns.mean() - column) < 3
    assert not crop or not back[:, : width // 5].any()
