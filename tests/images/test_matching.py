import functools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scripts import visual_words
from scripts.bench_duplicates import compress, lettering
from ultrasound import params
from ultrasound.images import keypoints, matching
from ultrasound.images.keypoints import KEYPOINTS, MIRROR, ONE, SIDE
from ultrasound.images.overlay import marks
from ultrasound.images.sources import phantom

INLIERS, CORRELATION = params.load().split.inliers, params.load().split.correlation


@functools.cache
def scan(label="benign", index=1):
    return np.asarray(phantom.phantom(label, index, seed=0)[0])


def describe(grey):
    return keypoints.signature(np.ascontiguousarray(grey), marks(np.ascontiguousarray(grey)))


@functools.cache
def described(label, index):
    return describe(scan(label, index))


def compare(one, other, *, mirrored=False):
    return matching.compare(one, other, INLIERS, mirrored=mirrored)


def is_pair(match):
    return match is not None and match.correlation >= CORRELATION


def share(grey, left=0.0, right=1.0):
    return grey[:, round(left * grey.shape[1]) : round(right * grey.shape[1])]


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


@pytest.mark.parametrize(
    "grey",
    [
        np.zeros((200, 300), np.uint8),
        np.full((200, 300), 255, np.uint8),
        *(noise(*shape) for shape in [(1, 1), (1, 400), (400, 1), (2, 2), (5, 7), (20, 3000), (3000, 20)]),
    ],
    ids=lambda grey: f"{grey.shape}, mean {grey.mean():.0f}",
)
def test_an_image_that_shows_next_to_nothing_is_described_and_compared(grey):
    one, other = describe(grey), described("benign", 1)
    assert max(one.grey.shape) == SIDE and one.tissue.shape == one.grey.shape
    assert len(one.points) == len(one.descriptors) <= KEYPOINTS
    assert one.descriptors.shape[1] == 128 and one.points.shape[1] == 3
    for mirrored in (False, True):
        assert not is_pair(compare(one, other, mirrored=mirrored))
        assert not is_pair(compare(other, one, mirrored=mirrored))
    compare(one, one)
    assert set(keypoints.candidates([one, other, one])) <= {(a, b, m) for a in (0, 1) for b in (1, 2) for m in (0, 1)}


def test_images_without_any_keypoint_have_no_candidates():
    blank = describe(np.zeros((200, 300), np.uint8))
    assert len(blank.points) == 0 and not blank.tissue.any()
    assert keypoints.candidates([blank, blank]) == []
    assert compare(blank, blank) is None
    assert keypoints.candidates([described("benign", 1)]) == []


@pytest.mark.parametrize(("few", "others"), [(0, 1), (1, 1), (2, 1), (5, 0)])
def test_a_handful_of_keypoints_is_no_obstacle(few, others):
    signatures = []
    for count in (few, others):
        whole = described("benign", 1)
        signatures.append(whole._replace(points=whole.points[:count], descriptors=whole.descriptors[:count]))
    assert set(keypoints.candidates(signatures)) <= {(0, 1, False), (0, 1, True)}
    assert compare(*signatures) is None


def test_a_scan_gives_keypoints_on_tissue_and_none_on_marks():
    plain, drawn = described("benign", 1), describe(np.asarray(lettering(Image.fromarray(scan()), None)))
    assert len(plain.points) > KEYPOINTS / 2
    assert plain.tissue.mean() > 0.8
    covered = ~drawn.tissue & plain.tissue
    assert 0.01 < covered.mean() < 0.2
    x, y = drawn.points[:, 0].round().astype(int), drawn.points[:, 1].round().astype(int)
    assert covered[y, x].mean() < 0.02


def test_described_is_the_pattern_whatever_its_size():
    large = cv2.resize(scan(), None, fx=1.6, fy=1.6, interpolation=cv2.INTER_CUBIC)
    one, other = describe(large), described("benign", 1)
    assert one.grey.shape == other.grey.shape
    assert compare(one, other).speckle > 0.95


@pytest.mark.parametrize("label", phantom.CLASSES)
def test_a_mirrored_descriptor_is_that_of_the_mirrored_image(label):
    one, other = described(label, 1), describe(scan(label, 1)[:, ::-1])
    places = one.points * [-1, 1, 1] + [one.grey.shape[1] - 1, 0, 0]
    away = np.abs(places[:, None] - other.points[None]).max(axis=2)
    same, where = away.min(axis=1) < 0.5, away.argmin(axis=1)
    assert same.sum() > 40

    def likeness(descriptors):
        left, right = descriptors[same].astype(float), other.descriptors[where][same]
        return (left * right).sum(axis=1) / ONE**2

    assert np.median(likeness(one.descriptors[:, MIRROR])) > 0.97
    assert np.median(likeness(one.descriptors)) < 0.9
    assert (one.descriptors[:, MIRROR][:, MIRROR] == one.descriptors).all()


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("label", phantom.CLASSES)
def test_the_alignment_finds_how_far_two_views_overlap(label, scale):
    left, right = share(scan(label, 2), 0, 0.7), share(scan(label, 2), 0.3, 1)
    right = cv2.resize(right, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    match = compare(describe(left), describe(right))
    assert match.overlap == pytest.approx(4 / 7, abs=0.02)
    assert match.correlation > 0.9 and match.inliers > 20


def test_a_window_lies_wholly_within_its_scan():
    grey = scan("malignant", 3)
    window = grey[30:-20, 40:-25]
    for one, other in ((window, grey), (grey, window)):
        match = compare(describe(one), describe(other))
        assert match.overlap > 0.98 and match.speckle > 0.85


@settings(deadline=None)
@given(
    scale=st.floats(0.7, 1.5), stretch=st.floats(0.9, 1.1), shift=st.tuples(*[st.floats(-60, 60)] * 2),
    wrong=st.integers(0, 40), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_shift_and_scale_are_recovered_among_wrong_correspondences(scale, stretch, shift, wrong, seed):
    random = np.random.default_rng(seed)
    here = random.uniform([0, 0, 2], [200, 150, 8], (20 + wrong, 3)).astype(np.float32)
    true = np.array([[scale * stretch, 0, shift[0]], [0, scale / stretch, shift[1]]])
    there = np.column_stack([here[:, :2] @ true[:, :2].T + true[:, 2], scale * here[:, 2]]).astype(np.float32)
    there[:20, :2] += random.uniform(-0.5, 0.5, (20, 2))
    there[20:] = random.uniform([0, 0, 2], [200, 150, 8], (wrong, 3))
    found = next(matching._alignments(here, there))
    corners = np.array([[0, 0], [200, 0], [0, 150], [200, 150]])
    assert np.abs(corners @ (found - true)[:, :2].T + (found - true)[:, 2]).max() < 2.5


def test_no_alignment_without_several_correspondences_that_spread():
    here = np.column_stack([np.full((20, 2), 50.0), np.full(20, 3.0)]).astype(np.float32)
    assert list(matching._alignments(here, here)) == []
    assert list(matching._alignments(here[:3], here[:3])) == []


def test_an_image_is_wholly_itself():
    match = compare(described("normal", 1), described("normal", 1))
    assert match.correlation == pytest.approx(1, abs=1e-3) and match.speckle == pytest.approx(1, abs=1e-3)
    assert match.overlap == pytest.approx(1, abs=0.01) and match.inliers > KEYPOINTS / 2


def test_a_mirrored_image_is_found_only_when_asked_for():
    one, other = described("benign", 3), describe(scan("benign", 3)[:, ::-1])
    assert compare(one, other, mirrored=True).speckle > 0.95
    assert not is_pair(compare(one, other))
    assert not is_pair(compare(one, one, mirrored=True))


@pytest.mark.parametrize("label", phantom.CLASSES)
def test_it_does_not_matter_which_image_is_aligned_with_which(label):
    original = described(label, 4)
    changed = np.asarray(compress(Image.fromarray(scan(label, 4)[25:, 40:]), None))
    for mirrored, copy in ((False, describe(changed)), (True, describe(changed[:, ::-1]))):
        there, back = compare(original, copy, mirrored=mirrored), compare(copy, original, mirrored=mirrored)
        assert there == pytest.approx(back, abs=1e-3)
        assert there.speckle > 0.85


@pytest.mark.parametrize("label", phantom.CLASSES)
def test_different_scans_of_a_class_are_no_pair(label):
    signatures = [described(label, index) for index in range(1, 9)]
    for first, one in enumerate(signatures):
        for other in signatures[:first]:
            for mirrored in (False, True):
                match = compare(one, other, mirrored=mirrored)
                assert not is_pair(match)
                if match:
                    assert match.inliers >= INLIERS
                    assert -1 <= match.correlation <= 1 and -1 <= match.speckle <= 1 and 0 <= match.overlap <= 1


@pytest.mark.parametrize("recognised", [True, False])
def test_scans_that_share_lettering_alone_are_no_pair(recognised):
    signatures = []
    for label in phantom.CLASSES:  # of one size, so that the lettering stands at the same place at the same scale
        image = np.asarray(lettering(Image.fromarray(scan(label, 5)[:320, :380]), None))
        covered = marks(image)
        assert covered.mean() > 0.03
        signatures.append(keypoints.signature(image, covered if recognised else np.zeros_like(covered)))
    for first, one in enumerate(signatures):
        for other in signatures[:first]:
            assert not is_pair(compare(one, other))


def test_lettering_on_black_is_no_evidence_even_of_itself():
    lettered = describe(np.asarray(lettering(Image.new("L", (500, 400)), None)))
    assert lettered.tissue.mean() < 0.02
    assert not is_pair(compare(lettered, lettered))


def test_a_gain_that_burns_out_the_scan_leaves_it_found():
    bright = np.clip(scan("malignant", 6).astype(float) * 1.8, 0, 255).astype(np.uint8)
    assert is_pair(compare(describe(bright), described("malignant", 6)))


def test_the_words_are_descriptors_of_phantoms():
    words = keypoints.vocabulary()
    assert words.shape == (visual_words.COUNT, 128)
    np.testing.assert_allclose(np.linalg.norm(words, axis=1), ONE, rtol=2e-3)

    def known(descriptors):  # up to what another processor draws otherwise
        return ((keypoints.root(descriptors).astype(np.float32) @ words.T).max(axis=1) > 0.995 * ONE**2).mean()

    cv2.setUseOptimized(False)  # as they were drawn
    try:
        drawn = visual_words._descriptors(0)
    finally:
        cv2.setUseOptimized(True)
    assert 0.4 < known(drawn) < 0.75  # of 7200 descriptors, 4096 were taken
    assert known(drawn[:, MIRROR]) < 0.05


def test_sums_of_products_are_exact_in_any_order():
    assert (ONE + 0.5 * 128**0.5) ** 2 < 2**24  # the longest that rounding makes a descriptor
    one, other = (described(label, 1).descriptors for label in ("benign", "malignant"))
    order = np.random.default_rng(0).permutation(128)
    for first, second in ((one, other), (one, one)):
        exact = first.astype(np.int64) @ second.astype(np.int64).T
        for columns in (np.arange(128), order):
            assert (first[:, columns].astype(np.float32) @ second[:, columns].astype(np.float32).T == exact).all()


def test_keypoints_that_stand_twice_in_both_images_correspond_to_none():
    one = described("benign", 1)
    twice = one._replace(points=np.concatenate([one.points] * 2), descriptors=np.concatenate([one.descriptors] * 2))
    assert len(matching._correspondences(twice, twice)[0]) == 0
    assert len(matching._correspondences(one, one)[0]) > KEYPOINTS / 2


def test_equally_near_images_are_all_candidates(monkeypatch):
    monkeypatch.setattr(keypoints, "NEIGHBOURS", 1)
    one, other = described("benign", 1), described("malignant", 2)
    found = keypoints.candidates([one, other, other, other, other])
    assert {(1, 2, False), (1, 4, False), (3, 4, False)} <= set(found)  # of four, the last two are not the first found


def test_images_that_share_no_word_are_no_candidates(monkeypatch):
    monkeypatch.setattr(keypoints, "vocabulary", lambda: np.eye(128, dtype=np.float32))
    blank = described("benign", 1)._replace(points=np.ones((1, 3), np.float32))
    images = [blank._replace(descriptors=ONE * np.eye(128, dtype=np.int16)[[number]]) for number in (0, 0, 60)]
    monkeypatch.setattr(keypoints, "VOTES", 1)
    assert {pair[:2] for pair in keypoints.candidates(images)} == {(0, 1)}


def test_copies_are_among_the_candidates_both_ways_around():
    scans = [scan("normal", index) for index in (1, 2, 3)]
    turned = [grey[:, 20:][:, ::-1] for grey in scans]
    signatures = [describe(grey) for grey in [*scans, *turned]]
    found = keypoints.candidates(signatures)
    assert {(0, 3, True), (1, 4, True), (2, 5, True)} <= set(found)
    assert found == sorted(found) and all(first < second for first, second, _ in found)


def test_each_image_has_few_candidates_however_many_there_are(monkeypatch):
    monkeypatch.setattr(keypoints, "NEIGHBOURS", 2)
    signatures = [described(label, index) for label in phantom.CLASSES for index in range(1, 9)]
    found = keypoints.candidates(signatures)
    assert 0 < len(found) <= 2 * 3 * len(signatures)  # 2 and, of the mirrored, 3 as none is the image itself
