"""The second head: what it learns, what it leaves out, and that it stays in the training."""

import numpy as np
import pytest
import torch

from tests.learning.test_fitting import fit, outlines, stripes, weights_of  # noqa: F401  stripes is a fixture
from ultrasound.errors import ParameterError
from ultrasound.images.loading import LESION, UNKNOWN
from ultrasound.learning import backbone, outlining

NAMES = ["test_resnet", "resnet18", "densenet121", "efficientnet_b0", "tf_efficientnet_lite0", "convnext_atto"]


@pytest.mark.parametrize("name", NAMES)
def test_the_network_answers_the_same_with_a_second_head_and_the_map_is_a_sixteenth(name):
    network = backbone.create(name, "none", 3, 8, 0.0)
    kept = set(network.state_dict())
    outliner = outlining.Outliner(network).eval()
    images = torch.rand(2, 1, 64, 96)
    with torch.inference_mode():
        logits, maps = outliner(images)
        torch.testing.assert_close(logits, network.eval()(images))
    assert maps.shape == (2, 1, 4, 6)
    assert set(network.state_dict()) == kept  # so that a saved classifier knows nothing of it


def test_a_backbone_without_maps_is_refused(monkeypatch):
    network = backbone.create("test_resnet", "none", 3, 8, 0.0)
    monkeypatch.delattr(type(network.backbone), "forward_intermediates")
    with pytest.raises(ParameterError, match=r"train\.segmentation_weight: this backbone gives no map"):
        outlining.Outliner(network)


def test_the_loss_is_least_for_the_true_map_also_where_there_is_no_lesion():
    masks = torch.zeros(3, 1, 64, 64)
    masks[:2, :, 16:32, 16:48] = 1
    true = torch.nn.functional.adaptive_avg_pool2d(masks, 4) * 40 - 20
    every = torch.ones(3)

    def of(maps):
        return float(outlining.loss(maps, masks, every))

    assert of(true) == pytest.approx(0, abs=1e-6)
    assert of(true) < of(true.roll(1, 3)) < of(-true)
    assert of(true) < of(torch.zeros_like(true))


def test_the_loss_agrees_with_its_definition():
    rng = np.random.default_rng(0)
    maps, shares = rng.normal(size=(2, 5, 5)), rng.uniform(size=(2, 5, 5))
    found = 1 / (1 + np.exp(-maps))
    entropy = -(shares * np.log(found) + (1 - shares) * np.log(1 - found)).mean((1, 2))
    dice = 1 - (2 * (found * shares).sum((1, 2)) + 1) / (found.sum((1, 2)) + shares.sum((1, 2)) + 1)
    ours = outlining.loss(*(torch.from_numpy(part)[:, None].float() for part in (maps, shares)), torch.tensor([1.0, 0]))
    assert float(ours) == pytest.approx(entropy[0] + dice[0], rel=1e-5)


def test_the_dice_loss_of_images_without_a_lesion_may_count_less():
    masks, every = torch.zeros(2, 1, 8, 8), torch.ones(2)
    masks[0, :, 2:6, 2:6] = 1
    maps = torch.zeros(2, 1, 8, 8)

    def of(weight, rows):
        return float(outlining.loss(maps[rows], masks[rows], every[rows], weight))

    assert of(0.0, slice(0, 1)) == of(1.0, slice(0, 1))
    dice = 1 - 1 / (32 + 1)  # half of 64 pixels is found where there is none
    assert of(0.25, slice(1, 2)) == pytest.approx(of(0.0, slice(1, 2)) + dice / 4, rel=1e-5)


def test_images_without_a_mask_teach_the_second_head_nothing():
    masks = torch.full((2, 1, 8, 8), UNKNOWN, dtype=torch.uint8)
    masks[0] = 0
    masks[0, 0, 2:4, 2:4] = LESION
    known = outlining.is_known(masks)
    assert known.tolist() == [True, False]
    maps = torch.zeros(2, 1, 4, 4, requires_grad=True)
    outlining.loss(maps, masks.float() / LESION, known.float()).backward()
    assert maps.grad[0].abs().sum() > 0
    assert maps.grad[1].abs().sum() == 0


def test_the_map_is_learnt(stripes):  # noqa: F811
    _, results, _ = fit(stripes, masks=outlines(), epochs=12, patience=12, segmentation_weight=1)
    losses = [result.train["outline_loss"] for result in results]
    assert losses[-1] < losses[0] / 2
    _, results, _ = fit(stripes, epochs=1)
    assert "outline_loss" not in next(results).train


def test_a_weight_of_nothing_changes_nothing_and_a_weight_does(stripes):  # noqa: F811
    def weights(**options):
        torch.manual_seed(0)
        network = backbone.create("test_resnet", "none", 3, 16, 0.1)
        list(fit(stripes, network, epochs=1, choose="last", **options)[1])
        return weights_of(network)

    plain = weights()
    assert torch.equal(plain, weights(masks=outlines()))  # the masks are there, but not asked for
    assert not torch.equal(plain, weights(masks=outlines(), segmentation_weight=1))
