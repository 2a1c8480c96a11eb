import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

from ultrasound.errors import InputError
from ultrasound.images import duplicates
from ultrasound.images.sources import phantom

HASH_DISTANCE, CORRELATION = 12, 0.85  # as in params.yaml
ORIGINALS = [(label, number) for label in phantom.CLASSES for number in (1, 2, 3)]


def crop(scan):
    right, low = scan.width // 50, scan.height // 50
    return scan.crop((right, low, scan.width - right, scan.height - low))


def more_contrast(scan):
    return ImageEnhance.Contrast(scan).enhance(1.4)


def less_contrast(scan):
    return ImageEnhance.Contrast(scan).enhance(0.7)


def calipers(scan):
    drawn = scan.copy()
    for x, y in ((0.3, 0.4), (0.6, 0.55)):
        across, down = x * scan.width, y * scan.height
        ImageDraw.Draw(drawn).line((across - 8, down, across + 8, down), 255, 2)
        ImageDraw.Draw(drawn).line((across, down - 8, across, down + 8), 255, 2)
    return drawn


def in_colour(scan):
    return scan.convert("RGB")


CHANGES = [crop, more_contrast, less_contrast, calipers, in_colour]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    named = {}
    for label, number in ORIGINALS:
        scan, _ = phantom.phantom(label, number, seed=0)
        changes = {"": lambda scan: scan} | ({change.__name__: change for change in CHANGES} if number == 1 else {})
        for name, change in changes.items():
            file = folder / f"{label} {number} {name}.png"
            change(scan).save(file)
            named[label, number, name] = str(file)
    return named


@pytest.fixture(scope="module")
def pairs(files):
    names = list(files)
    found = duplicates.near_duplicates(list(files.values()), HASH_DISTANCE, CORRELATION)
    return {(names[first], names[second]) for first, second in found}


@pytest.mark.parametrize("change", [change.__name__ for change in CHANGES])
@pytest.mark.parametrize("label", phantom.CLASSES)
def test_a_changed_copy_is_found(pairs, label, change):
    assert ((label, 1, ""), (label, 1, change)) in pairs


def test_independent_scans_are_not_joined(pairs):
    assert {(first[:2], second[:2]) for first, second in pairs if first[:2] != second[:2]} == set()


def test_each_pair_is_told_once_and_in_order(files):
    chosen = [file for (label, number, _), file in files.items() if (label, number) == ("benign", 1)]
    found = duplicates.near_duplicates(chosen, HASH_DISTANCE, CORRELATION)
    assert len(found) == len(set(found)) >= 5
    assert all(first < second for first, second in found)


@pytest.mark.parametrize("label", phantom.CLASSES)
def test_a_scan_that_returns_among_the_phantoms_is_found(tmp_path, label):
    files = []
    for number in (8, 9, 10):  # each tenth phantom shows the ninth again, cropped
        files.append(str(tmp_path / f"{number}.png"))
        phantom.phantom(label, number, seed=0)[0].save(files[-1])
    assert duplicates.near_duplicates(files, HASH_DISTANCE, CORRELATION) == [(1, 2)]


def test_a_like_hash_is_not_enough_without_like_pixels(files):
    chosen = [files[label, number, ""] for label, number in ORIGINALS]
    assert duplicates.near_duplicates(chosen, 64, CORRELATION) == []  # at 64 bits every pair is a candidate


def test_like_pixels_are_not_enough_without_a_like_hash(files):
    chosen = [files["benign", 1, ""], files["benign", 1, "crop"], files["malignant", 2, ""]]
    assert duplicates.near_duplicates(chosen, 0, 0.01) == []


def test_identical_images_are_found_at_the_strictest_setting(tmp_path):
    files = []
    for seed in range(10):
        noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (80, 90), dtype=np.uint8))
        for level in (1, 9):
            files.append(str(tmp_path / f"{seed} {level}.png"))
            noise.save(files[-1], compress_level=level)
    assert duplicates.near_duplicates(files, 0, 1.0) == [(first, first + 1) for first in range(0, 20, 2)]


def test_a_damaged_file_is_named(tmp_path):
    file = tmp_path / "damaged.png"
    file.write_text("no image")
    with pytest.raises(InputError, match=r"damaged\.png is not a PNG or JPEG image"):
        duplicates.near_duplicates([str(file)], HASH_DISTANCE, CORRELATION)


def test_groups_join_chains_and_leave_singletons():
    assert duplicates.groups(8, [(0, 3), (3, 5), (5, 7), (1, 2)]).tolist() == [0, 1, 1, 0, 2, 0, 3, 0]


def test_without_pairs_every_image_is_its_own_group():
    assert duplicates.groups(4, []).tolist() == [0, 1, 2, 3]


@given(st.integers(1, 25).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_groups_are_the_connected_components_numbered_by_their_first_image(drawn):
    count, joined = drawn
    expected = list(range(count))
    for first, second in joined:
        into, gone = sorted((expected[first], expected[second]))
        expected = [into if label == gone else label for label in expected]
    order = sorted(set(expected))
    assert duplicates.groups(count, joined).tolist() == [order.index(label) for label in expected]
