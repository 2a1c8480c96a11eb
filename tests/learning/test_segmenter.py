"""The U-Net: its encoders and their weights, its steps, what is saved, and its graph."""

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState

from tests.learning.test_fitting import settings, weights_of
from ultrasound.errors import InputError, ParameterError
from ultrasound.images.loading import Batches
from ultrasound.images.preparation import Preparation
from ultrasound.inference import outliner
from ultrasound.inference.familiarity import TRAITS, Familiarity
from ultrasound.inference.regions import Rule
from ultrasound.learning import backbone, export, fitting, outlining, segmenter
from ultrasound.learning.checkpoints import Checkpoints
from ultrasound.learning.segmenter import Outlines, Segmenter, UNet
from ultrasound.learning.segmenting import Segmenting
from ultrasound.scoring import outlines

ENCODERS = ["resnet18", "densenet121", "efficientnet_b0", "tf_efficientnet_lite0", "test_resnet"]


def pixels(number, size=64):
    return np.random.default_rng(3).integers(0, 256, (number, size, size)).astype(np.uint8)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_map_has_the_size_of_the_image_with_any_encoder_that_has_five_resolutions(name):
    network = UNet(name, 32).eval()
    with torch.inference_mode():
        for shape in ((2, 1, 64, 96), (1, 1, 75, 75)):
            assert network(torch.rand(shape)).shape == shape


@pytest.mark.parametrize("name", ["densenet121", "resnet18", "tf_efficientnet_lite0"])
def test_the_encoder_gets_the_weights_of_the_whole_model(name, tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=0).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    encoder = segmenter.create(name, str(tmp_path / "weights.pth"), 32).backbone.eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        _, *levels = encoder(images)
        expected = whole.forward_intermediates(images, intermediates_only=True)
    for level in levels:
        assert any(level.shape == other.shape and torch.allclose(level, other, atol=1e-5) for other in expected) or (
            level is levels[0]
        )  # the stem is no intermediate of every model


def test_packaged_weights_are_those_of_the_classifier():
    unet = segmenter.create("tf_efficientnet_lite0", "packaged", 32)
    network = backbone.create("tf_efficientnet_lite0", "packaged", 3, 8, 0.0)
    assert torch.equal(unet.backbone.model.conv_stem.weight, network.backbone.conv_stem.weight)
    assert torch.equal(unet.mean, network.mean) and torch.equal(unet.std, network.std)


def test_a_backbone_without_five_resolutions_and_an_unknown_one_are_refused():
    with pytest.raises(ParameterError, match=r"does not yield features at 5 resolutions.*convolutional"):
        UNet("test_vit", 32)
    with pytest.raises(ParameterError, match=r"is no model of timm.*resnet18"):
        UNet("resnet81", 32)


def test_the_answer_to_a_mirrored_image_is_the_mirrored_answer():
    torch.manual_seed(0)
    network = Outlines([UNet("test_resnet", 32) for _ in range(2)], flip=True).eval()
    images = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network(images.flip(-1)), network(images).flip(-1))
        single = Outlines(network.members, flip=False)(images)
    assert not torch.allclose(single, network(images), atol=1e-4)
    assert ((single > 0) & (single < 1)).all()


def made(members=1, flip=False):
    torch.manual_seed(1)
    network = Outlines([UNet("test_resnet", 32) for _ in range(members)], flip=flip).eval().requires_grad_(False)
    with torch.no_grad():
        for member in network.members:
            member.head["last"][0].weight.mul_(30)  # probabilities far enough apart that a slip would show
    knows = Familiarity((0.0,) * len(TRAITS), tuple(map(tuple, np.eye(len(TRAITS)).tolist())), 1e9, 20)
    return Segmenter(network, Preparation(64, fit="pad"), "0" * 16, Rule(120, 130, 0.001, 20), knows)


def test_what_is_saved_answers_the_same(tmp_path):
    model, images = made(2, True), pixels(5)
    model.save(tmp_path)
    loaded = segmenter.load(tmp_path)
    np.testing.assert_array_equal(loaded.levels(images), model.levels(images))
    np.testing.assert_array_equal(loaded.masks(images), model.masks(images))
    assert (loaded.rule, loaded.preparation, loaded.familiarity) == (model.rule, model.preparation, model.familiarity)
    assert 0.02 < model.masks(images).mean() < 0.98


def test_a_damaged_or_missing_segmenter_is_told(tmp_path):
    with pytest.raises(InputError, match=r"holds no segmenter: segmenter\.json is missing"):
        segmenter.load(tmp_path)
    model = made()
    model.save(tmp_path)
    export.export_outlines(model.network, 64, tmp_path)
    (tmp_path / "segmenter.json").write_text("{}")
    for load in (segmenter.load, lambda folder: outliner.load(folder, "x/1")):
        with pytest.raises(InputError, match="is damaged"):
            load(tmp_path)


@pytest.mark.parametrize(("members", "flip"), [(1, False), (2, True)])
def test_the_graph_answers_as_torch_does_for_any_number_of_images(tmp_path, members, flip):
    model = made(members, flip)
    model.save(tmp_path)
    export.export_outlines(model.network, 64, tmp_path)
    served = outliner.load(tmp_path, "a/1")
    for number in (1, 4):
        found = served.graph.answers(pixels(number))
        assert np.abs(found.astype(int) - model.levels(pixels(number))).max() <= 1
        assert found.std() > 20


def test_a_graph_that_answers_otherwise_is_refused(tmp_path, monkeypatch):
    model = made()
    model.save(tmp_path)
    quantised = segmenter.quantised
    monkeypatch.setattr(segmenter, "quantised", lambda p: quantised(p) if torch.jit.is_tracing() else quantised(1 - p))
    with pytest.raises(InputError, match=r"answers otherwise than torch.*model\.name"):
        export.export_outlines(model.network, 64, tmp_path)


@pytest.fixture(scope="module")
def discs():
    """Bright discs on noise, and noise alone: learnable in seconds."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 90, (40, 32, 32)).astype(np.uint8)
    masks = np.zeros((40, 32, 32), bool)
    y, x = np.mgrid[:32, :32]
    for row in range(0, 40, 2):
        masks[row] = (y - rng.integers(10, 22)) ** 2 + (x - rng.integers(10, 22)) ** 2 < rng.integers(16, 50)
    images[masks] += 120
    return images, masks


def fit(discs, folder=None, until=None, outlined=None, classes=None, **train):
    AcceleratorState._reset_state(reset_partial_state=True)
    images, masks = discs
    chosen = settings(**train)
    device = fitting.accelerator(chosen.train)
    network = segmenter.create("test_resnet", "none", 32).to(device.device)
    training, validation = (
        Batches(
            images,
            np.zeros(40, np.int64) if classes is None else classes,
            8,
            device.device,
            rows,
            masks=masks,
            outlined=outlined,
        )
        for rows in (np.arange(24), np.arange(24, 40))
    )
    results = fitting.fit(
        network, training, validation, chosen.train, chosen.augment, outlines.epoch_score, device,
        Checkpoints(folder) if folder else None, until=until, task=Segmenting,
    )  # fmt: skip
    return network, results, validation


def test_it_learns_where_the_lesions_are_and_that_some_images_have_none(discs):
    network, results, validation = fit(discs, epochs=30, learning_rate=0.003, choose="last", head_rate=1)
    results = list(results)
    assert results[-1].validation["lesion_dice"] > 0.8
    assert results[-1].validation["false_lesion_rate"] <= 0.5
    assert results[-1].train["loss"] < results[0].train["loss"] / 2
    levels = segmenter.predict(Outlines([network], flip=False), validation)
    assert np.abs(levels.astype(int) - results[-1].probabilities).max() <= 1


def test_a_stopped_training_goes_on_as_if_it_had_not_been_stopped(discs, tmp_path):
    options = {"epochs": 4, "freeze": 1, "ema": 0.9, "test_flip": True, "choose": "best"}
    network, results, _ = fit(discs, **options)
    whole = list(results)
    for stop in (1, 2):
        _, results, _ = fit(discs, tmp_path, **options)
        for result in results:
            if result.epoch == stop:
                results.close()
    resumed, results, _ = fit(discs, tmp_path, **options)
    again = list(results)
    assert torch.equal(weights_of(network), weights_of(resumed))
    for one, other in zip(whole, again, strict=True):
        assert (one.train, one.validation, one.is_best) == (other.train, other.validation, other.is_best)
    last_best = max(result.epoch for result in whole if result.is_best)
    for epoch in {last_best, 4}:
        np.testing.assert_array_equal(whole[epoch - 1].probabilities, again[epoch - 1].probabilities)


def test_only_images_whose_lesion_somebody_has_outlined_teach(discs):
    even = np.arange(40) % 2 == 0
    parts = []
    for outlined in (even, ~even, np.ones(40, bool)):  # in steps too small to change an answer
        _, results, _ = fit(discs, outlined=outlined, epochs=1, learning_rate=1e-12)
        (result,) = results
        parts.append(result.train["loss"])
    lesions, empty, every = parts
    assert abs(lesions - empty) > 0.1
    assert (lesions + empty) / 2 == pytest.approx(every, abs=1e-4)  # twelve images of each kind


def test_only_images_whose_lesion_somebody_has_outlined_count(discs):
    images, masks = discs
    outlined = np.arange(40) % 5 != 0
    network, results, _ = fit(discs, outlined=outlined, epochs=1, test_flip=False)
    (result,) = results
    known, truth = outlined[24:], masks[24:][outlined[24:]]
    assert 0 < known.sum() < len(known)
    values = dict(result.validation)
    loss = values.pop("loss")
    assert values == outlines.epoch_score(truth, result.probabilities[known])
    with torch.inference_mode():
        logits = network.eval()(torch.from_numpy(images[24:, None][known]).float() / 255)
        summed = outlining.loss(logits, torch.from_numpy(truth[:, None]).float(), torch.ones(len(truth)))
    assert loss == pytest.approx(float(summed.sum()) / len(truth), abs=1e-4)


def test_the_loss_of_a_validation_is_that_of_the_training_on_the_same_images(discs):
    network, results, _ = fit(discs, epochs=1, test_flip=False)
    (result,) = results
    device = torch.device("cpu")
    images, masks = discs
    with torch.inference_mode():
        logits = network.eval()(torch.from_numpy(images[24:, None]).to(device).float() / 255)
    truth = torch.from_numpy(masks[24:, None]).float()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
    found = logits.sigmoid()
    overlap, both = (found * truth).sum((1, 2, 3)), (found + truth).sum((1, 2, 3))
    assert result.validation["loss"] == pytest.approx(
        float(entropy + (1 - (2 * overlap + 1) / (both + 1)).mean()), abs=1e-4
    )


def test_the_class_may_be_learnt_beside_and_no_head_of_it_is_left(discs):
    classes = discs[1].any(axis=(1, 2)).astype(np.int64)
    options = {"epochs": 45, "learning_rate": 0.003, "choose": "last", "head_rate": 1}
    network, results, _ = fit(discs, classes=classes, classification_weight=0.5, **options)
    *_, last = results
    assert last.validation["macro_f1"] > 0.9 and last.validation["lesion_dice"] > 0.8
    assert last.train["class_loss"] < 0.5
    plain, results, _ = fit(discs, classes=classes, **options)
    *_, last = results
    assert "macro_f1" not in last.validation and "class_loss" not in last.train
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert not torch.equal(weights_of(network), weights_of(plain))


def test_a_training_of_two_tasks_goes_on_as_if_it_had_not_been_stopped(discs, tmp_path):
    classes = discs[1].any(axis=(1, 2)).astype(np.int64)
    options = {"epochs": 3, "ema": 0.9, "classes": classes, "classification_weight": 1}
    network, results, _ = fit(discs, **options)
    whole = list(results)
    _, results, _ = fit(discs, tmp_path, **options)
    next(results)
    results.close()
    resumed, results, _ = fit(discs, tmp_path, **options)
    assert [result.validation for result in results] == [result.validation for result in whole]
    assert torch.equal(weights_of(network), weights_of(resumed))
