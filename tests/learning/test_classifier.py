import json

import numpy as np
import pytest
import torch

from ultrasound.errors import InputError
from ultrasound.images.preparation import Preparation
from ultrasound.learning import backbone, classifier
from ultrasound.learning.classifier import Classifier


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    architecture = {"name": "test_resnet", "classes": 3, "head_width": 8, "dropout": 0.2}
    network = classifier.Ensemble([backbone.Network(**architecture)], flip=False)
    model = Classifier(network, ("benign", "malignant", "normal"), Preparation(48), architecture, "0123")
    model.save(tmp_path / "classifier")
    return model, tmp_path / "classifier"


def test_saved_and_loaded_classifiers_answer_alike(saved):
    model, folder = saved
    images = np.random.default_rng(0).integers(0, 255, (5, 48, 48)).astype(np.uint8)
    loaded = classifier.load(folder)
    np.testing.assert_array_equal(loaded.probabilities(images), model.probabilities(images))
    assert loaded.labels == model.labels
    assert loaded.preparation == model.preparation
    np.testing.assert_allclose(loaded.probabilities(images[:1]), model.probabilities(images)[:1], atol=1e-6)


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
