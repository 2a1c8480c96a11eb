import numpy as np
import pytest
import torch
from torch.nn import functional

from ultrasound.images.loading import Batches
from ultrasound.learning import heat
from ultrasound.learning.backbone import Network
from ultrasound.learning.classifier import Ensemble, predict


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 255, (5, 96, 96)).astype(np.uint8)


def network(seed, name="test_resnet"):
    torch.manual_seed(seed)
    return Network(name, 3, 16, 0.0).eval().requires_grad_(False)


def by_hand(member, image, target):
    """Weights are the mean gradients of the target's logit; the map is the positive part of the weighted sum."""
    found = member.maps(torch.from_numpy(image)[None, None] / 255).detach().requires_grad_()
    member.answer_to_maps(found)[0, target].backward()
    weights = found.grad.mean(dim=(2, 3), keepdim=True)
    return functional.relu((weights * found).sum(dim=1))[0].detach().numpy()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_maps_are_those_of_the_definition_for_each_image_and_its_own_class(images, name):
    member = network(0, name)
    classes = np.array([0, 1, 2, 0, 1])
    probabilities, maps = heat.explain(Ensemble([member], flip=False), images, classes)
    for image, target, found in zip(images, classes, maps, strict=True):
        expected = by_hand(member, image, target)
        if expected.sum() > 0:
            expected /= expected.sum()
        np.testing.assert_allclose(found, expected, atol=1e-5)
    batches = Batches(images, np.zeros(5, dtype=np.int64), 32, torch.device("cpu"))
    np.testing.assert_allclose(probabilities, predict(Ensemble([member], flip=False), batches), atol=1e-6)


def test_networks_and_views_count_alike_and_the_mirrored_view_is_mirrored_back(images):
    members = [network(seed) for seed in range(2)]
    both = Ensemble(members, flip=True)
    probabilities, maps = heat.explain(both, images)
    batches = Batches(images, np.zeros(5, dtype=np.int64), 32, torch.device("cpu"))
    np.testing.assert_allclose(probabilities, predict(both, batches), atol=1e-6)
    target, parts = probabilities.argmax(1), []
    for member in members:
        single = Ensemble([member], flip=False)
        parts.append(heat.explain(single, images, target)[1])
        parts.append(heat.explain(single, np.ascontiguousarray(images[:, :, ::-1]), target)[1][:, :, ::-1])
    total = np.sum(parts, axis=0)
    sums = total.sum(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(maps, np.divide(total, sums, out=np.zeros_like(total), where=sums > 0), atol=1e-5)


def test_maps_are_none_negative_sum_to_one_and_are_enlarged_in_place(images):
    _, maps = heat.explain(Ensemble([network(1)], flip=False), images)
    assert (maps >= 0).all()
    assert set(maps.sum(axis=(1, 2)).round(4)) <= {0.0, 1.0}
    single = np.zeros((1, 3, 3), np.float32)
    single[0, 0, 2] = 1
    larger = heat.enlarged(single, 96)
    assert larger.shape == (1, 96, 96)
    row, column = np.unravel_index(larger[0].argmax(), (96, 96))
    assert row < 32 and column >= 64


def test_convolutional_networks_have_maps_and_transformers_do_not():
    for name, expected in (("test_resnet", True), ("test_efficientnet", True), ("test_vit", False)):
        member = network(0, name)
        assert heat.has_maps(Ensemble([member], flip=False), member.input_size[0]) is expected


def test_a_network_whose_head_is_random_keeps_its_backbone_and_one_that_is_all_random_stays_alive(images):
    member = network(3, "test_efficientnet")
    head, every = (heat.randomised(member, images, parts, 0) for parts in ("head", "all"))
    own = member.state_dict()
    changed = {part: {name for name, value in copy.state_dict().items() if not torch.equal(value, own[name])}
               for part, copy in (("head", head), ("all", every))}  # fmt: skip
    assert changed["head"] and all(name.startswith("head.") for name in changed["head"])
    assert any(name.startswith("backbone.") for name in changed["all"])
    maps = every.maps(torch.from_numpy(images)[:, None] / 255)
    assert float(maps.std(dim=0).mean()) > 1e-3  # it tells images apart
    assert own.keys() == member.state_dict().keys() and all(
        torch.equal(value, own[name]) for name, value in member.state_dict().items()
    )
