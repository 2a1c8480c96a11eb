import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from tests.conftest import PROJECT
from ultrasound import params
from ultrasound.errors import ParameterError
from ultrasound.images.augmentation import Augmentation
from ultrasound.images.loading import Batches
from ultrasound.learning import backbone, classifier, fitting
from ultrasound.scoring import metrics


def settings(**train):
    small = {"train.device": "cpu", "train.batch_size": 8, "train.learning_rate": 0.003, "train.warmup": 0}
    return params.load(small | {f"train.{name}": value for name, value in train.items()}, PROJECT / "params.yaml")


@pytest.fixture(scope="module")
def stripes():
    """Horizontal, vertical and no stripes: learnable in seconds."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (48, 32, 32)).astype(np.uint8)
    targets = np.arange(48) % 3
    images[targets == 0, ::4, :] += 180
    images[targets == 1, :, ::4] += 180
    return images, targets


def fit(stripes, network=None, **train):
    AcceleratorState._reset_state(reset_partial_state=True)  # one precision a process otherwise
    images, targets = stripes
    chosen = settings(**train)
    device = fitting.accelerator(chosen.train)
    network = network or backbone.create("test_resnet", "none", 3, 16, 0.1)
    training, validation = (
        Batches(images[part], targets[part], chosen.train.batch_size, device.device)
        for part in (slice(0, 32), slice(32, None))
    )
    results = fitting.fit(network, training, validation, chosen.train, chosen.augment, metrics.epoch_score, device)
    return network, results, validation


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
    with pytest.raises(fitting.DivergedError, match=r"nan in epoch 1, step 1, at learning rate 0\.003: lower"):
        next(fit(stripes, network)[1])


def test_class_weights_balance_a_rare_class():
    targets = torch.tensor([0] * 8 + [1] * 2)
    weights = fitting._class_weights(targets, 2, "balanced")
    assert weights.tolist() == pytest.approx([10 / 16, 10 / 4])
    assert fitting._class_weights(targets, 2, "none") is None


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


def test_shuffled_batches_hold_every_image_once_and_depend_on_seed_and_epoch():
    batches = Batches(np.zeros((10, 4, 4), np.uint8), np.arange(10), 4, torch.device("cpu"))
    assert len(batches) == 3

    def order(seed, epoch):
        return [int(number) for _, chosen in batches.shuffled(seed, epoch) for number in chosen]

    assert sorted(order(0, 1)) == list(range(10))
    assert order(0, 1) == order(0, 1) != order(0, 2) != order(1, 1)
    nine = Batches(np.zeros((9, 4, 4), np.uint8), np.arange(9), 4, torch.device("cpu"))
    assert [len(chosen) for _, chosen in nine.shuffled(0, 1)] == [4, 4]  # one image alone has no batch statistics
    assert [len(chosen) for _, chosen in nine.in_order()] == [4, 4, 1]


def test_augmentation_keeps_shape_and_range_and_differs_by_image():
    torch.manual_seed(0)
    image = torch.rand(1, 1, 48, 48).expand(6, -1, -1, -1).clone()
    changed = Augmentation(rotation=20, flip=0.5, contrast=0.3)(image)
    assert changed.shape == image.shape
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert len({float(one.sum()) for one in changed}) == 6
    unchanged = Augmentation(rotation=0, flip=0, contrast=0)(image)
    torch.testing.assert_close(unchanged, image)
    flipped = Augmentation(rotation=0, flip=1, contrast=0)(image)
    torch.testing.assert_close(flipped, image.flip(-1))


def test_contrast_keeps_each_images_mean_and_changes_its_spread():
    torch.manual_seed(0)
    images = torch.rand(8, 1, 32, 32) * 0.2 + 0.4  # far from black and white, so nothing is clipped
    changed = Augmentation(rotation=0, flip=0, contrast=0.5)(images)
    torch.testing.assert_close(changed.mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3)))
    factors = changed.std(dim=(1, 2, 3)) / images.std(dim=(1, 2, 3))
    assert 0.5 <= float(factors.min()) < 0.9
    assert 1.1 < float(factors.max()) <= 1.5
