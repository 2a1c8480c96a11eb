import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import PROJECT
from ultrasound import params
from ultrasound.images.augmentation import Augmentation
from ultrasound.images.sources import phantom

NONE = dict.fromkeys(("rotation", "flip", "scale", "shift", "contrast", "gain", "attenuation", "speckle"), 0)
ONE_EACH = [("rotation", 20), ("flip", 1), ("scale", 0.2), ("shift", 0.1), ("contrast", 0.4), ("gain", 0.3),
            ("attenuation", 0.4), ("speckle", 0.3)]  # fmt: skip


def augmentation(**changed):
    chosen = {f"augment.{name}": value for name, value in (NONE | changed).items()}
    return Augmentation(params.load(chosen, PROJECT / "params.yaml").augment)


@pytest.fixture
def scans():
    torch.manual_seed(0)
    pictures = [phantom.phantom(label, 1, 0)[0].resize((64, 64)) for label in phantom.CLASSES]
    grey = np.stack([np.asarray(picture.convert("L")) for picture in pictures * 2])
    return torch.from_numpy(grey)[:, None].float() / 255


@pytest.mark.parametrize(("name", "value"), ONE_EACH)
def test_each_change_keeps_shape_and_range_and_differs_by_image(scans, name, value):
    same = scans[:1].expand(6, -1, -1, -1)
    changed = augmentation(**{name: value})(same)
    assert changed.shape == same.shape
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert not torch.allclose(changed[0], same[0], atol=0.01)
    if name != "flip":
        assert len({round(float(one.double().square().sum()), 3) for one in changed}) == 6
    torch.testing.assert_close(changed, changed.nan_to_num(-1))


def test_nothing_asked_for_is_nothing_changed(scans):
    torch.testing.assert_close(augmentation()(scans), scans)


def test_the_same_seed_draws_the_same(scans):
    both = []
    for _ in range(2):
        torch.manual_seed(5)
        both.append(augmentation(**dict(ONE_EACH))(scans))
    assert torch.equal(*both)


def test_a_flip_mirrors_left_and_right_and_never_up_and_down(scans):
    torch.testing.assert_close(augmentation(flip=1)(scans), scans.flip(-1), atol=1e-4, rtol=0)
    half = augmentation(flip=0.5)(scans[:1].expand(40, -1, -1, -1))
    mirrored = [bool(torch.allclose(one, scans[0].flip(-1), atol=1e-4)) for one in half]
    same = [bool(torch.allclose(one, scans[0], atol=1e-4)) for one in half]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 8 <= sum(mirrored) <= 32


def test_skin_stays_above_and_what_comes_in_is_black():
    layers = torch.linspace(1, 0.2, 64)[:, None].expand(64, 64)[None, None].expand(50, -1, -1, -1)
    torch.manual_seed(0)
    changed = augmentation(rotation=30, flip=0.5, scale=0.2, shift=0.1, contrast=0.3, attenuation=0.3)(layers)
    assert (changed[:, 0, 16:30, 20:44].mean((1, 2)) > changed[:, 0, 34:48, 20:44].mean((1, 2))).all()
    white = torch.ones(20, 1, 64, 64)
    corners = augmentation(rotation=30)(white)[:, 0, 0, 0]
    assert float(corners.min()) == 0


def test_a_turn_keeps_angles_and_sizes_also_where_the_image_is_wider_than_high():
    image = torch.zeros(30, 1, 60, 120)
    image[:, :, 10:50, 58:62] = 1  # a bar through the centre, 40 x 4 pixels
    torch.manual_seed(1)
    turned = augmentation(rotation=45)(image)
    torch.testing.assert_close(turned.sum((1, 2, 3)), image.sum((1, 2, 3)), rtol=0.06, atol=0)
    for one in turned[:, 0]:
        rows, columns = torch.nonzero(one > 0.5, as_tuple=True)
        spread = torch.cov(torch.stack([rows.float(), columns.float()]))
        length = float(torch.linalg.eigvalsh(spread)[-1].sqrt() * 12**0.5)
        assert length == pytest.approx(40, abs=2)


def test_shift_and_scale_are_as_large_as_they_say():
    image = torch.zeros(200, 1, 100, 100)
    image[:, :, 45:55, 45:55] = 1
    torch.manual_seed(0)
    moved = augmentation(shift=0.2)(image)[:, 0]
    weight = moved / moved.sum((1, 2), keepdim=True)
    rows = (weight.sum(2) * torch.arange(100)).sum(1) - 49.5
    columns = (weight.sum(1) * torch.arange(100)).sum(1) - 49.5
    for offsets in (rows, columns):
        assert -20.1 < float(offsets.min()) < -15 and 15 < float(offsets.max()) < 20.1
    assert abs(float(torch.corrcoef(torch.stack([rows, columns]))[0, 1])) < 0.3
    sizes = augmentation(scale=0.2)(image).sum((1, 2, 3)) / 100
    assert 0.62 < float(sizes.min()) < 0.75 and 1.3 < float(sizes.max()) < 1.46


def test_contrast_keeps_the_mean_gain_multiplies_it_and_attenuation_falls_on_the_deep():
    torch.manual_seed(0)
    images = torch.rand(64, 1, 32, 32) * 0.2 + 0.4  # far from black and white, so nothing is clipped
    means = images.mean(dim=(1, 2, 3))
    contrasted = augmentation(contrast=0.5)(images)
    torch.testing.assert_close(contrasted.mean(dim=(1, 2, 3)), means, atol=1e-3, rtol=0)
    factors = contrasted.std(dim=(1, 2, 3)) / images.std(dim=(1, 2, 3))
    assert 0.49 < float(factors.min()) < 0.7 and 1.3 < float(factors.max()) < 1.51
    gains = augmentation(gain=0.3)(images).mean(dim=(1, 2, 3)) / means
    assert 0.69 < float(gains.min()) < 0.8 and 1.2 < float(gains.max()) < 1.31
    ratio = augmentation(attenuation=0.4)(images) / images
    torch.testing.assert_close(ratio[:, :, 0], torch.ones(64, 1, 32), atol=1e-4, rtol=0)
    deep = ratio[:, 0, -1].mean(1)
    assert 0.59 < float(deep.min()) < 0.75 and 1.25 < float(deep.max()) < 1.41


def test_speckle_is_noise_in_grains_that_leaves_black_black():
    torch.manual_seed(0)
    images = torch.full((16, 1, 64, 64), 0.5)
    images[..., :8] = 0
    noisy = augmentation(speckle=0.4)(images)
    assert float(noisy[..., :8].max()) == 0
    tissue = noisy[..., 8:]
    assert float((tissue.mean((1, 2, 3)) - 0.5).abs().max()) < 0.03
    centred = tissue - tissue.mean((1, 2, 3), keepdim=True)
    next_to, far = ((centred[..., shift:] * centred[..., :-shift]).mean() / centred.square().mean() for shift in (1, 6))
    assert float(next_to) > 0.4 > abs(float(far)) * 8  # neighbours belong to one grain


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), rotation=st.floats(0, 45), shift=st.floats(0, 0.2), scale=st.floats(0, 0.3))
def test_masks_move_with_their_images(seed, rotation, shift, scale):
    torch.manual_seed(seed)
    masks = torch.zeros(4, 1, 48, 48)
    masks[:, :, 14:30, 18:40] = masks[:, :, 26:34, 18:22] = 1  # the same from no two sides
    changes = augmentation(rotation=rotation, shift=shift, scale=scale, flip=0.5)
    draws = changes.draw(masks)
    image, mask = changes.apply(masks, draws)[:, 0], changes.apply_to_masks(masks, draws)[:, 0]
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    inside = (image > 0.5).float()
    dice = 2 * (inside * mask).sum((1, 2)) / (inside.sum((1, 2)) + mask.sum((1, 2)))
    assert float(dice.min()) > 0.95  # the pixels of the edge may round otherwise
    for axis in (1, 2):  # no shift of one against the other, which Dice forgives
        places = torch.arange(48.0).reshape([-1 if axis == each else 1 for each in (0, 1, 2)])
        centres = [(each * places).sum((1, 2)) / each.sum((1, 2)) for each in (inside, mask)]
        assert float((centres[0] - centres[1]).abs().max()) < 0.5
