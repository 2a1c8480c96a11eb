import weakref
from typing import ClassVar

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState

from tests.conftest import PROJECT
from ultrasound import params
from ultrasound.errors import InputError, ParameterError
from ultrasound.images.loading import Batches
from ultrasound.learning import backbone, classifier, fitting, memory
from ultrasound.learning.checkpoints import Checkpoints
from ultrasound.learning.divergence import DivergedError
from ultrasound.scoring import metrics

# Each test adds to this what it is about, whatever recipe params.yaml holds.
PLAIN = {
    "device": "cpu", "batch_size": 8, "learning_rate": 0.003, "warmup": 0, "choose": "best", "patience": 8, "freeze": 0,
    "optimizer": "adam", "head_rate": 1, "layer_decay": 1, "weight_decay": 0.0001, "segmentation_weight": 0,
    "classification_weight": 0, "empty_weight": 1,
    "label_smoothing": 0, "class_weights": "auto", "ema": 0, "test_flip": False,
}  # fmt: skip


def settings(**train):
    return params.load({f"train.{name}": value for name, value in (PLAIN | train).items()}, PROJECT / "params.yaml")


@pytest.fixture(scope="module")
def stripes():
    """Horizontal, vertical and no stripes: learnable in seconds."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (48, 32, 32)).astype(np.uint8)
    targets = np.arange(48) % 3
    images[targets == 0, ::4, :] += 180
    images[targets == 1, :, ::4] += 180
    return images, targets


def fit(stripes, network=None, folder=None, validate=True, until=None, augment=None, masks=None, **train):
    AcceleratorState._reset_state(reset_partial_state=True)  # one precision a process otherwise
    images, targets = stripes
    chosen = params.override(settings(**train), {f"augment.{name}": value for name, value in (augment or {}).items()})
    device = fitting.accelerator(chosen.train)
    network = (network or backbone.create("test_resnet", "none", 3, 16, 0.1)).to(device.device)
    training, validation = (
        Batches(images, targets, chosen.train.batch_size, device.device, rows, masks=shown)
        for rows, shown in ((np.arange(32), masks), (np.arange(32, 48), None))
    )
    results = fitting.fit(
        network, training, validation if validate else None, chosen.train, chosen.augment, metrics.epoch_score, device,
        Checkpoints(folder) if folder else None, until=until,
    )  # fmt: skip
    return network, results, validation


def weights_of(network):
    return torch.cat([tensor.flatten().float() for tensor in network.state_dict().values()])


def outlines():
    """Masks for the images of `stripes`: the first class is lesion all over, the others hold none."""
    masks = np.zeros((48, 32, 32), dtype=bool)
    masks[np.arange(48) % 3 == 0] = True
    return masks


# A recipe with everything in it that a checkpoint must hold.
ALL = {"epochs": 6, "freeze": 1, "ema": 0.9, "optimizer": "adamw", "layer_decay": 0.8, "test_flip": True, "clip": 1,
       "segmentation_weight": 0.5}  # fmt: skip


def test_learns_and_ends_with_the_weights_of_the_best_epoch(stripes):
    network, results, validation = fit(stripes, epochs=25, patience=25)
    results = list(results)
    best = [result for result in results if result.is_best][-1]
    assert best.validation["macro_f1"] == max(result.validation["macro_f1"] for result in results) > 0.8
    np.testing.assert_allclose(classifier.predict(network, validation), best.probabilities, atol=1e-6)
    assert results[0].images_per_second > 0
    assert results[-1].learning_rate < results[0].learning_rate


def test_same_seed_gives_the_same_weights_to_the_bit_and_another_seed_others(stripes):
    def weights(seed):
        network, results, _ = fit(stripes, epochs=2, seed=seed)
        losses = [result.train["loss"] for result in results]
        return losses, torch.cat([tensor.flatten().float() for tensor in network.state_dict().values()])

    (losses, first), (again, second), (_, third) = weights(1), weights(1), weights(2)
    assert losses == again
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_stops_early_when_nothing_gets_better(stripes):
    results = list(fit(stripes, epochs=30, patience=2, learning_rate=1e-9)[1])
    assert len(results) < 30
    assert not any(result.is_best for result in results[-2:])


def test_schedules(stripes):
    def rates(**train):
        return [result.learning_rate for result in fit(stripes, epochs=4, **train)[1]]

    assert len(set(rates(schedule="constant"))) == 1
    assert rates(schedule="cosine") == sorted(rates(schedule="cosine"), reverse=True)
    warm = rates(schedule="constant", warmup=2)
    assert warm[0] < warm[2] == pytest.approx(0.003)
    plateau = rates(schedule="plateau", learning_rate=1e-8, patience=3)
    assert plateau[-1] < plateau[0]


def test_a_loss_that_is_not_finite_stops_with_epoch_step_and_rate(stripes):
    network = backbone.create("test_resnet", "none", 3, 16, 0.1)
    with torch.no_grad():
        network.head[-1].weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"nan in epoch 1, batch 1, at learning rate 0\.003: lower"):
        next(fit(stripes, network)[1])


def test_a_device_or_precision_that_is_not_there_is_refused():
    if not torch.cuda.is_available():
        with pytest.raises(ParameterError, match="no usable CUDA GPU"):
            fitting.accelerator(settings(device="cuda").train)
    with pytest.raises(ParameterError, match="fp16 needs CUDA"):
        fitting.accelerator(settings(precision="fp16").train)


def test_bf16_trains_and_leaves_a_network_that_predicts_in_full_precision(stripes):
    network, results, validation = fit(stripes, epochs=1, precision="bf16")
    list(results)
    with torch.inference_mode():
        assert network(torch.zeros(1, 1, 32, 32)).dtype == torch.float32
    plain = backbone.create("test_resnet", "none", 3, 16, 0.1)
    plain.load_state_dict(network.state_dict())
    np.testing.assert_allclose(
        classifier.predict(network, validation), classifier.predict(plain, validation), atol=1e-6
    )


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_a_stopped_training_goes_on_as_if_it_had_not_been_stopped(stripes, tmp_path, schedule):
    mixed = {"mixup": 0.3, "cutmix": 0.3}
    options = {**ALL, "schedule": schedule, "patience": 3, "choose": "last"}
    network, results, _ = fit(stripes, augment=mixed, masks=outlines(), **options)
    whole = list(results)
    for stop in (1, 2, 4):  # in the frozen epochs, at the thaw, and later
        _, results, _ = fit(stripes, folder=tmp_path, augment=mixed, masks=outlines(), **options)
        for result in results:
            if result.epoch == stop:
                results.close()
    resumed, results, _ = fit(stripes, folder=tmp_path, augment=mixed, masks=outlines(), **options)
    again = list(results)
    assert [result.epoch for result in again] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(whole, again, strict=True):
        assert one.train == other.train
        assert one.validation == other.validation
        assert one.learning_rate == other.learning_rate
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
    assert torch.equal(weights_of(network), weights_of(resumed))


def test_the_best_weights_survive_a_stop(stripes, tmp_path):
    options = {"epochs": 8, "patience": 8, "learning_rate": 0.01, "schedule": "constant"}
    network, results, _ = fit(stripes, **options)
    whole = list(results)
    best = [result.epoch for result in whole if result.is_best][-1]
    _, results, _ = fit(stripes, folder=tmp_path, **options)
    for result in results:
        if result.epoch == min(best + 1, 7):
            results.close()
    resumed, results, validation = fit(stripes, folder=tmp_path, **options)
    assert [result.is_best for result in results] == [result.is_best for result in whole]
    assert torch.equal(weights_of(network), weights_of(resumed))
    np.testing.assert_allclose(classifier.predict(resumed, validation), whole[best - 1].probabilities, atol=1e-6)


def test_frozen_epochs_change_the_head_alone(stripes):
    network = backbone.create("test_resnet", "none", 3, 16, 0.1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    _, results, _ = fit(stripes, network, epochs=3, freeze=2, choose="last")
    next(results), next(results)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith(("backbone", "mean", "std")), name
    next(results)
    changed = [not torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items()
               if name.startswith("backbone") and tensor.numel() > 1]  # fmt: skip
    assert all(changed)


def test_the_last_epoch_is_kept_where_that_is_asked_for_or_nothing_validates(stripes):
    network, results, validation = fit(stripes, epochs=4, choose="last", patience=1, learning_rate=1e-7)
    results = list(results)
    assert len(results) == 4  # no early stop
    np.testing.assert_allclose(classifier.predict(network, validation), results[-1].probabilities, atol=1e-6)
    _, results, _ = fit(stripes, epochs=9, validate=False, until=3)
    results = list(results)
    assert [result.validation for result in results] == [{}, {}, {}]
    assert results[0].learning_rate > results[-1].learning_rate > 0.001  # on the schedule of 9 epochs
    assert results[-1].train["loss"] < results[0].train["loss"]


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_nothing_stops_a_training_that_has_no_images_to_validate(stripes, schedule):
    results = list(fit(stripes, epochs=6, patience=2, schedule=schedule, validate=False, until=5)[1])
    assert [result.epoch for result in results] == [1, 2, 3, 4, 5]
    if schedule == "plateau":
        assert len({result.learning_rate for result in results}) == 1


def test_frozen_epochs_do_not_count_as_a_plateau(stripes):
    results = list(fit(stripes, epochs=8, freeze=6, patience=2, learning_rate=1e-9, schedule="plateau")[1])
    assert len(results) == 8
    assert results[5].learning_rate == results[0].learning_rate


def test_weights_that_the_last_step_of_an_epoch_breaks_are_no_checkpoint(stripes, tmp_path, monkeypatch):
    network = backbone.create("test_resnet", "none", 3, 16, 0.1)
    _, results, _ = fit(stripes, network, folder=tmp_path, epochs=3)
    next(results)

    def step_and_break(self, *arguments, **options):
        done = original(self, *arguments, **options)
        steps.append(1)
        if len(steps) == 4:  # the last of the second epoch
            with torch.no_grad():
                network.head[-1].bias.fill_(float("inf"))
        return done

    original, steps = AcceleratedOptimizer.step, []
    monkeypatch.setattr(AcceleratedOptimizer, "step", step_and_break)
    with pytest.raises(DivergedError, match="no longer finite after epoch 2"):
        next(results)
    assert Checkpoints(tmp_path).load()["numbers"]["epoch"] == 1


def test_the_moving_average_is_what_is_validated_and_kept(stripes):
    network, results, validation = fit(stripes, epochs=5, ema=0.8, choose="last")
    averaged = list(results)[-1]
    np.testing.assert_allclose(classifier.predict(network, validation), averaged.probabilities, atol=1e-6)
    _, results, _ = fit(stripes, epochs=5, choose="last")
    plain = list(results)[-1]
    assert averaged.train == plain.train  # the average learns nothing itself
    assert not np.allclose(averaged.probabilities, plain.probabilities, atol=1e-4)


def test_mixed_images_have_a_loss_but_no_accuracy(stripes):
    result = next(fit(stripes, augment={"mixup": 0.4})[1])
    assert set(result.train) == {"loss"}
    assert set(result.validation) == {"loss", "accuracy", "macro_f1"}


def test_clipping_bounds_what_a_step_can_change(stripes):
    def moved(**train):
        network = backbone.create("test_resnet", "none", 3, 16, 0.1)
        before = torch.cat([weight.detach().flatten() for weight in network.parameters()])
        list(fit(stripes, network, epochs=1, choose="last", weight_decay=0, **train)[1])
        return float((torch.cat([weight.detach().flatten() for weight in network.parameters()]) - before).norm())

    free, tight = moved(), moved(clip=1e-9)  # Adam divides by the gradient's size, but for its epsilon of 1e-8
    assert tight < free / 2


class Limited(torch.autograd.Function):
    """Stands for a GPU that holds the activations of at most five images, forward or backward, and of one batch."""

    alive: ClassVar = weakref.WeakSet()

    @staticmethod
    def forward(ctx, images, where):
        ctx.where, ctx.count = where, len(images)
        if (where == "forward" and len(images) > 5) or len(Limited.alive) > 1:
            raise torch.OutOfMemoryError
        result = images.clone()
        Limited.alive.add(ctx)
        return result

    @staticmethod
    def backward(ctx, gradient):
        if ctx.where == "backward" and ctx.count > 5:
            raise torch.OutOfMemoryError
        return gradient, None


class SmallGpu(backbone.Network):
    where = "forward"

    def features(self, images):
        features = super().features(images)
        return Limited.apply(features, self.where) if self.training else features


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_too_large_a_batch_is_answered_with_one_that_fits(stripes, where):
    network = SmallGpu("test_resnet", 3, 16, 0.1)
    network.where = where
    with pytest.raises(InputError, match=r"too small for train.batch_size=8: 4 would fit, or set it to auto"):
        next(fit(stripes, network)[1])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert memory.batch_that_fits(network, 32, fitting.accelerator(settings().train)) == 4


def test_compiled_steps_learn_the_same(stripes):
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = backbone.create("test_resnet", "none", 3, 16, 0.0)  # compiled code draws dropout otherwise
        results = fit(stripes, network, epochs=2, learning_rate=1e-4, compile=compiled)[1]
        losses.append([result.train["loss"] for result in results])
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    assert network._compiled_call_impl is not None
