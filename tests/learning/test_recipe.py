import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import PROJECT
from ultrasound import params
from ultrasound.errors import ParameterError
from ultrasound.learning import backbone, recipe


def settings(**train):
    chosen = {"train.learning_rate": 0.01, "train.warmup": 0, "train.freeze": 0}
    return params.load(chosen | {f"train.{name}": value for name, value in train.items()}, PROJECT / "params.yaml")


@pytest.fixture(scope="module")
def network():
    return backbone.create("test_resnet", "none", 3, 16, 0.1)


def optimizer(network, **train):
    return recipe.optimizer(network, settings(**train).train, fused=True)


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_every_weight_is_learnt_once_and_biases_and_norms_do_not_decay(network, name, kind):
    made = optimizer(network, optimizer=name, weight_decay=0.1, layer_decay=0.7)
    assert isinstance(made, kind)
    learnt = [weight for group in made.param_groups for weight in group["params"]]
    assert len(learnt) == len({id(weight) for weight in learnt}) == len(list(network.parameters()))
    for group in made.param_groups:
        for weight in group["params"]:
            assert group["weight_decay"] == (0.1 if weight.ndim > 1 else 0)


def test_layers_learn_slower_the_nearer_they_are_to_the_image(network):
    train = settings(layer_decay=0.5, head_rate=3).train
    made = recipe.optimizer(network, train, fused=True)
    recipe.Rates(made, train, 10).set(0)
    rate = {id(weight): group["lr"] for group in made.param_groups for weight in group["params"]}
    of = {name: rate[id(weight)] for name, weight in network.named_parameters()}
    first = next(value for name, value in of.items() if name.startswith("backbone.conv1"))
    last = [value for name, value in of.items() if name.startswith("backbone.layer4")][-1]
    assert first < of["backbone.layer1.0.conv1.weight"] < last <= 0.01
    assert first / last == pytest.approx(0.5 ** round(math.log2(last / first)))
    assert of["head.4.weight"] == of["head.1.bias"] == pytest.approx(0.03)


def rates(steps, epochs=4, **train):
    chosen = settings(epochs=epochs, **train).train
    network = backbone.create("test_resnet", "none", 3, 16, 0.1)
    schedule = recipe.Rates(recipe.optimizer(network, chosen, fused=True), chosen, steps)
    return [schedule.set(step) for step in range(epochs * steps)]


def test_cosine_falls_to_zero_after_a_warm_up_that_follows_the_frozen_epochs():
    course = rates(10, schedule="cosine", warmup=1, freeze=1)
    assert course[:10] == [pytest.approx(0.01)] * 10
    assert course[10] == pytest.approx(0.0005)
    assert course[10:20] == sorted(course[10:20])
    assert course[20:] == sorted(course[20:], reverse=True)
    assert course[-1] < 0.0002
    assert max(course[10:]) == pytest.approx(0.01)


def test_a_constant_rate_and_one_that_falls_on_a_plateau():
    assert set(rates(5, schedule="constant")) == {0.01}
    train = settings(schedule="plateau", patience=6).train
    network = backbone.create("test_resnet", "none", 3, 16, 0.1)
    schedule = recipe.Rates(recipe.optimizer(network, train, fused=True), train, 5)
    for epochs, scale in ((1, 1), (2, 0.3), (3, 0.3), (4, 0.09)):
        schedule.no_better(epochs)
        assert schedule.set(5) == pytest.approx(0.01 * scale)


def test_the_loss_is_torchs_weighted_smoothed_cross_entropy():
    torch.manual_seed(0)
    logits, targets, weights = torch.randn(20, 3), torch.arange(20) % 3, torch.tensor([0.5, 2.0, 1.0])
    for smoothing, given in ((0.0, weights), (0.2, torch.ones(3))):
        shares = recipe.smooth(targets, 3, smoothing)
        mine = recipe.loss(logits, shares, given) / (shares * given).sum()
        torch.testing.assert_close(mine, nn.CrossEntropyLoss(given, label_smoothing=smoothing)(logits, targets))


def test_class_weights_balance_a_rare_class_or_are_as_given():
    targets = torch.tensor([0] * 8 + [1] * 2)
    assert recipe.class_weights(targets, 2, "auto").tolist() == pytest.approx([10 / 16, 10 / 4])
    assert recipe.class_weights(targets, 2, "none").tolist() == [1, 1]
    assert recipe.class_weights(targets, 2, (1.0, 3.0)).tolist() == [1, 3]
    with pytest.raises(ParameterError, match="give one weight for each of 3 classes"):
        settings(class_weights=[1, 2])


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_gives_labels_the_share_of_their_pixels(kind):
    augment = params.load({f"augment.{kind}": 1.0}, PROJECT / "params.yaml").augment
    mix = recipe.Mixing(augment, 2, 0.0)
    np.random.seed(0)
    images = torch.cat([torch.zeros(4, 1, 40, 40), torch.ones(4, 1, 40, 40)])
    mixed, shares = mix(images.clone(), torch.tensor([0] * 4 + [1] * 4))
    assert mix.active
    assert mixed.shape == images.shape
    torch.testing.assert_close(shares.sum(1), torch.ones(8))
    torch.testing.assert_close(shares[:, 1], mixed.mean((1, 2, 3)), atol=0.02, rtol=0)
    assert 0.01 < float(shares[0, 1]) < 0.99


def test_an_odd_image_is_left_out_where_pairs_are_mixed_and_only_there():
    images, targets = torch.rand(5, 1, 8, 8), torch.arange(5) % 3
    augment = params.load({"augment.mixup": 0.4, "augment.cutmix": 0}, PROJECT / "params.yaml").augment
    assert len(recipe.Mixing(augment, 3, 0.1)(images, targets)[0]) == 4
    augment = params.load({"augment.mixup": 0, "augment.cutmix": 0}, PROJECT / "params.yaml").augment
    same, shares = recipe.Mixing(augment, 3, 0.3)(images, targets)
    assert torch.equal(same, images)
    assert shares[0].tolist() == pytest.approx([0.8, 0.1, 0.1])


def test_the_moving_average_follows_the_weights():
    network = nn.Linear(2, 1)
    average = recipe.moving_average(network, 0.9)
    before = average.module.weight.clone()
    with torch.no_grad():
        network.weight += 1
    for step in range(1, 400):
        average.update(network, step)
    torch.testing.assert_close(average.module.weight, network.weight)
    assert not torch.allclose(before, network.weight)
    assert recipe.moving_average(network, 0) is None
