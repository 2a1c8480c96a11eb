"""What is told about an image without looking at what it shows, and when the model must abstain."""

import dataclasses
import json
import time

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from scipy.spatial.distance import mahalanobis

from ultrasound.images.preparation import Preparation
from ultrasound.images.sources.phantom import CLASSES, phantom
from ultrasound.inference.familiarity import (
    COLOURED,
    LEAST_SIDE,
    TRAITS,
    UNLIKE,
    Familiarity,
    coloured_share,
    traits,
    unfit,
)

PREPARED = Preparation(128, fit="pad")
SCANS = [phantom(CLASSES[number % 3], number, 0)[0] for number in range(1, 6)]


@pytest.fixture(scope="module")
def familiarity() -> Familiarity:
    found = np.stack([traits(PREPARED.grey(scan)) for scan in SCANS])
    precision = np.linalg.inv(np.cov(found.T) + 0.01 * np.eye(len(TRAITS)))
    return Familiarity(tuple(found.mean(0)), tuple(map(tuple, precision)), 10.0, len(found))


def told(image: Image.Image, size: int = 128) -> dict[str, float]:
    return dict(zip(TRAITS, traits(Preparation(size, fit="pad").grey(image)), strict=True))


@pytest.mark.parametrize("size", [64, 224, 384])
def test_every_image_has_traits(size):
    rng = np.random.default_rng(0)
    point, corner = np.zeros((2, size, size), np.uint8)
    point[size // 2, size // 2] = corner[0, 0] = 255
    line = np.zeros((size, size), np.uint8)
    line[:, size // 2 : size // 2 + 9] = 200
    blanks = [np.full((size, size), level, np.uint8) for level in (0, 8, 9, 255)]
    for grey in [*blanks, point, corner, line, rng.integers(0, 256, (size, size), np.uint8)]:
        found = traits(grey)
        assert found.shape == (len(TRAITS),)
        assert np.isfinite(found).all()


def test_the_black_beside_a_scan_has_no_part_in_its_traits():
    scan = np.asarray(SCANS[0].resize((200, 150)))
    assert (traits(np.pad(scan, ((25, 25), (0, 0)))) == traits(scan)).all()
    assert (traits(np.pad(scan, ((3, 40), (60, 1)))) == traits(scan)).all()


@pytest.mark.parametrize("scan", SCANS[:4])
def test_traits_say_what_their_names_say(scan):
    usual, mirrored = told(scan), told(ImageOps.mirror(scan))
    assert list(mirrored.values()) == pytest.approx(list(usual.values()), abs=0.05)
    turned = told(scan.transpose(Image.Transpose.ROTATE_90))
    for name in ("stretch", "stretch_half", "stretch_fourth"):
        assert turned[name] == pytest.approx(-usual[name], abs=0.05)
    upended = told(ImageOps.flip(scan))
    assert upended["shallow"] == pytest.approx(-usual["shallow"], abs=0.05)
    assert upended["lateral"] == pytest.approx(usual["lateral"], abs=0.05)
    inverted = told(ImageOps.invert(scan))
    assert inverted["skewness"] == pytest.approx(-usual["skewness"], abs=0.1)
    assert inverted["fine"] == pytest.approx(usual["fine"], abs=0.05)
    assert inverted["surface"] == pytest.approx(-usual["surface"], abs=0.1)
    blurred = told(scan.filter(ImageFilter.GaussianBlur(6)))
    assert blurred["fine"] < usual["fine"] - 0.3 and blurred["second"] < usual["second"] - 0.3
    levels = np.asarray(scan, float)
    noisy = told(
        Image.fromarray((levels + np.random.default_rng(0).normal(0, 80, levels.shape)).clip(0, 255).astype("u1"))
    )
    assert noisy["second"] > usual["second"] + 0.1 and noisy["fine"] > usual["fine"]
    brighter = told(scan.point(lambda level: min(255, 2 * level)))
    for name in ("mean", "bright", "high"):
        assert brighter[name] > usual[name]


def test_grey_levels_and_depth_are_told_alike_at_every_size():
    small, large = told(SCANS[0], 96), told(SCANS[0], 384)
    for name in ("mean", "surface", "near", "middle", "lateral"):
        assert small[name] == pytest.approx(large[name], abs=0.15), name


def test_the_distance_is_that_of_mahalanobis(familiarity):
    found = traits(PREPARED.grey(SCANS[0]))
    expected = mahalanobis(found, familiarity.centre, np.array(familiarity.precision))
    assert familiarity.distance(found) == pytest.approx(expected)
    assert familiarity.distance(np.array(familiarity.centre)) == 0
    exact = dataclasses.replace(familiarity, limit=familiarity.distance(found))
    assert exact.knows(PREPARED.grey(SCANS[0]))
    assert not dataclasses.replace(exact, limit=exact.limit * 0.999).knows(PREPARED.grey(SCANS[0]))


def test_it_is_read_from_the_json_that_it_was_written_to(familiarity):
    facts = json.loads(json.dumps(dataclasses.asdict(familiarity)))
    assert Familiarity.read(facts) == familiarity
    assert hash(Familiarity.read(facts)) == hash(familiarity)  # of tuples all through
    for broken in (
        facts | {"centre": facts["centre"][1:]},
        facts | {"precision": [row[1:] for row in facts["precision"]]},
    ):
        with pytest.raises(ValueError, match="is not of 17 traits"):
            Familiarity.read(broken)
    with pytest.raises(KeyError):
        Familiarity.read({})
    with pytest.raises(TypeError):
        Familiarity.read(facts | {"surprise": 1})


def test_the_first_reason_is_told(familiarity):
    def reason(image: Image.Image) -> str:
        return familiarity.abstains(unfit(image), PREPARED.grey(image))

    scan = SCANS[0]
    assert reason(scan) == "" == reason(scan.convert("RGB"))
    photo = Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50)
    assert reason(photo) == UNLIKE
    pink = Image.merge("RGB", (photo, photo.point(lambda level: level // 3), photo))
    assert reason(pink) == COLOURED
    strip = pink.resize((400, LEAST_SIDE - 1))
    assert reason(strip) == f"The image is too small: 400 x {LEAST_SIDE - 1} pixels, at least {LEAST_SIDE} are needed."
    assert reason(strip.transpose(Image.Transpose.ROTATE_90)).startswith("The image is too small: 95 x 400 pixels")
    assert reason(scan.resize((LEAST_SIDE, LEAST_SIDE))) != reason(scan.resize((LEAST_SIDE - 1, LEAST_SIDE)))
    for sentence in (UNLIKE, COLOURED, reason(strip)):
        assert sentence.endswith(".") and sentence.count(".") == 1


def test_a_few_coloured_calipers_are_no_colour_image(familiarity):
    scan = SCANS[0].convert("RGB")
    for share, said in ((0.02, ""), (0.05, COLOURED)):
        marked = scan.copy()
        marked.paste((255, 220, 0), (0, 0, scan.width, round(share * scan.height)))
        assert coloured_share(marked) == pytest.approx(share, abs=0.005)  # sampled
        assert familiarity.abstains(unfit(marked), PREPARED.grey(scan)) == said
    assert coloured_share(SCANS[0]) == 0 == coloured_share(scan)
    assert coloured_share(Image.new("RGB", (300, 200), (100, 132, 110))) == 0  # as much as compression leaves
    assert coloured_share(Image.new("RGB", (300, 200), (133, 100, 110))) == 1


@pytest.mark.alone
def test_it_costs_little(familiarity):
    image = SCANS[0].convert("RGB")
    prepared = Preparation(224, fit="pad").grey(image)
    seconds = []
    for _ in range(30):
        start = time.perf_counter()
        familiarity.abstains(unfit(image), prepared)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.002
