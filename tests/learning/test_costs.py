"""What a network costs, against numbers that are known."""

import pytest
import timm
import torch

from ultrasound.learning import backbone, costs


def test_parameters_and_operations_are_those_of_the_literature():
    network = backbone.create("resnet50", "none", 3, 256, 0.3)
    head = 2048 * 256 + 256 + 256 * 3 + 3
    assert costs.parameters(network) == 25_557_032 - (2048 * 1000 + 1000) + head  # torchvision's ResNet50
    # 4.09 G multiplications with additions at 224 x 224 (torchvision), of which the classifier's are not ours
    assert costs.operations(network, 224) == pytest.approx(2 * 4.09e9, rel=0.01)


def test_larger_images_cost_more_and_a_forward_pass_is_what_is_timed():
    network = backbone.create("test_resnet", "none", 3, 16, 0.1)
    assert costs.operations(network, 64) == pytest.approx(4 * costs.operations(network, 32), rel=0.05)
    assert 0 < costs.latency(network, 32) < 1
    seen = []
    network.register_forward_hook(lambda module, images, output: seen.append(images[0].shape))
    costs.latency(network, 64)
    assert seen == [torch.Size([1, 1, 64, 64])] * (costs.WARM_UP + costs.TIMED)
    assert timm.is_model("test_resnet")
