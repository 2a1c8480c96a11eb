"""Which regions a rule takes for lesions, and what is measured of them."""

import cv2
import numpy as np
import pytest
from PIL import Image

from ultrasound.images.preparation import Preparation
from ultrasound.inference.regions import Rule, shape


def test_a_region_is_lesion_if_it_is_large_and_somewhere_sure_enough():
    levels = np.zeros((40, 40), np.uint8)
    levels[2:12, 2:12] = 110  # large, never sure
    levels[20:30, 20:30] = 110
    levels[24, 24] = 201  # large, and sure in one pixel
    levels[35:37, 2:4] = 250  # sure, but small
    found = Rule(100, 200, 0.01, 0).mask(levels)
    assert found[20:30, 20:30].all() and found.sum() == 100
    assert Rule(100, 100, 0.01, 0).mask(levels).sum() == 200
    assert Rule(100, 100, 0.0, 0).mask(levels).sum() == 204
    assert not Rule(111, 202, 0.01, 0).mask(levels).any()
    assert not Rule(100, 200, 0.0, 0).mask(np.zeros((40, 40), np.uint8)).any()
    assert Rule(100, 200, 0.0, 0).mask(np.full((40, 40), 255, np.uint8)).all()


def test_pixels_that_touch_at_a_corner_are_one_region():
    levels = np.zeros((8, 8), np.uint8)
    levels[[2, 3], [2, 3]] = 200, 120
    assert Rule(100, 150, 0.0, 0).mask(levels).sum() == 2


def ellipse(width, height, size=200):
    mask = np.zeros((size, size), np.uint8)
    cv2.ellipse(mask, (size // 2, size // 2), (width // 2, height // 2), 0, 0, 360, 1, -1)
    return mask.astype(bool)


def test_measures_of_known_shapes():
    disc = shape(ellipse(80, 80), 40_000)
    assert disc.regions == 1 and disc.taller_than_wide == 1
    assert disc.circularity > 0.97
    assert disc.area_share == ellipse(80, 80).sum() / 40_000
    assert shape(ellipse(120, 60), 40_000).taller_than_wide == pytest.approx(0.5, abs=0.01)
    assert shape(ellipse(60, 120), 40_000).taller_than_wide == pytest.approx(2, abs=0.04)
    star = np.zeros((200, 200), np.uint8)
    for angle in range(0, 180, 20):
        cv2.ellipse(star, (100, 100), (70, 6), angle, 0, 360, 1, -1)
    assert shape(star.astype(bool), 40_000).circularity < 0.3 < shape(ellipse(120, 60), 40_000).circularity
    square = np.zeros((200, 200), bool)
    square[50:150, 50:150] = True
    assert shape(square, 40_000).circularity == pytest.approx(np.pi / 4, abs=0.1)  # four directions round it off
    strip = np.zeros((50, 50), bool)
    strip[20, 10:40] = True
    assert shape(strip, 2500).circularity < 0.15


@pytest.mark.parametrize("size", [(150, 120), (190, 310), (500, 400), (562, 471), (1040, 700), (2000, 1500)])
@pytest.mark.parametrize(
    ("wide", "tall", "angle"), [(8, 8, 0), (25, 25, 0), (50, 50, 0), (40, 20, 0), (40, 20, 30), (20, 2, 0), (20, 2, 30)]
)
def test_what_is_measured_does_not_depend_on_the_size_of_the_image(size, wide, tall, angle):
    preparation = Preparation(224, fit="pad")
    _, place = preparation.placed(Image.new("L", size))
    down, right = np.mgrid[:224, :224] - 112.3
    turned = np.deg2rad(angle)
    along, across = (right * np.cos(turned) + down * np.sin(turned), down * np.cos(turned) - right * np.sin(turned))
    inside = (along / wide) ** 2 + (across / tall) ** 2 <= 1
    mask = preparation.back(inside.astype(np.uint8) * 255, place) > 127
    found = shape(mask, size[0] * size[1], max(size) / 224)
    perimeter = np.pi * (3 * (wide + tall) - np.sqrt((3 * wide + tall) * (wide + 3 * tall)))  # Ramanujan's, to 1e-4
    assert found.circularity == pytest.approx(4 * np.pi * np.pi * wide * tall / perimeter**2, abs=0.04)
    if not angle:
        assert found.taller_than_wide == pytest.approx(tall / wide, abs=0.12)


def test_of_several_regions_the_largest_is_measured_and_all_count_for_the_area():
    both = ellipse(60, 120)
    both[:4, :4] = True
    assert shape(both, 40_000)[:1] == (2,)
    assert shape(both, 40_000).area_share == both.sum() / 40_000
    assert shape(both, 40_000).taller_than_wide == pytest.approx(2, abs=0.04)


def test_where_nothing_was_found_there_is_nothing_to_measure():
    found = shape(np.zeros((9, 9), bool), 81)
    assert found[:2] == (0, 0.0) and np.isnan(found[2:]).all()


def test_a_single_pixel_has_measures_too():
    dot = np.zeros((9, 9), bool)
    dot[4, 4] = True
    assert shape(dot, 81) == (1, 1 / 81, 1.0, 1.0)
