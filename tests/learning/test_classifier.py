import dataclasses
import json

import numpy as np
import pytest
import torch

from ultrasound.errors import InputError
from ultrasound.images.preparation import Preparation
from ultrasound.inference.calibration import Calibration
from ultrasound.learning import backbone, classifier
from ultrasound.learning.classifier import Classifier
from ultrasound.scoring import resemblance


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = classifier.Ensemble([backbone.Network("test_resnet", 3, 8, 0.2)], flip=False)
    calibration = Calibration(1.7, "malignant", 0.3, (0.2, 0.1, 0.05), 0.95, 0.9, 120, "of a test")
    scans = np.random.default_rng(1).integers(0, 255, (12, 48, 48)).astype(np.uint8)
    familiarity = resemblance.fit(scans, np.arange(12))
    model = Classifier(network, ("benign", "malignant", "normal"), Preparation(48), "0123", calibration, familiarity)
    model.save(tmp_path / "classifier")
    return model, tmp_path / "classifier"


def test_saved_and_loaded_classifiers_answer_alike(saved):
    model, folder = saved
    images = np.random.default_rng(0).integers(0, 255, (5, 48, 48)).astype(np.uint8)
    loaded = classifier.load(folder)
    np.testing.assert_array_equal(loaded.probabilities(images), model.probabilities(images))
    assert loaded.labels == model.labels
    assert loaded.preparation == model.preparation
    assert loaded.calibration == model.calibration
    assert loaded.familiarity == model.familiarity
    np.testing.assert_allclose(loaded.probabilities(images[:1]), model.probabilities(images)[:1], atol=1e-6)


def test_its_probabilities_are_calibrated_and_decide_sets(saved):
    model, _ = saved
    images = np.random.default_rng(0).integers(0, 255, (5, 48, 48)).astype(np.uint8)
    raw, probabilities = model.raw(images), model.probabilities(images)
    expected = raw ** (1 / 1.7)
    np.testing.assert_allclose(probabilities, expected / expected.sum(axis=1, keepdims=True))
    assert (model.calibrated.sets(probabilities) == (probabilities >= [0.2, 0.1, 0.05])).all()


def test_one_that_was_not_calibrated_is_not_saved(saved, tmp_path):
    with pytest.raises(AssertionError, match="not calibrated"):
        dataclasses.replace(saved[0], calibration=None).save(tmp_path / "other")
    with pytest.raises(AssertionError, match="what this classifier knows was not measured"):
        dataclasses.replace(saved[0], familiarity=None).save(tmp_path / "another")
    assert not (tmp_path / "other").exists() and not (tmp_path / "another").exists()


def test_a_classifier_holds_no_pickle(saved):
    assert {file.name for file in saved[1].iterdir()} == {"classifier.json", "weights.safetensors"}


def test_missing_and_damaged_parts_are_named(saved, tmp_path):
    _, folder = saved
    with pytest.raises(InputError, match=r"classifier\.json is missing"):
        classifier.load(tmp_path)
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(weights[:1000])
    with pytest.raises(InputError, match="damaged"):
        classifier.load(folder)
    (folder / "weights.safetensors").write_bytes(weights)
    facts = json.loads((folder / "classifier.json").read_text())
    (folder / "classifier.json").write_text(
        json.dumps(facts | {"architecture": facts["architecture"] | {"head_width": 9}})
    )
    with pytest.raises(InputError, match="damaged"):
        classifier.load(folder)
    (folder / "classifier.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        classifier.load(folder)
