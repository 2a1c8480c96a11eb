import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ultrasound.errors import InputError
from ultrasound.learning import backbone, probe


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return backbone.create("test_resnet", "none", 3, 8, 0.5)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (21, 48, 48)).astype(np.uint8)


def test_features_are_what_the_head_of_the_network_is_given(network, images):
    found = probe.features(network, images, batch=8)
    given = []
    hook = network.head[0].register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with torch.inference_mode():
        network.eval()(torch.from_numpy(images).unsqueeze(1).float() / 255)
    hook.remove()
    assert found.dtype == np.float32
    assert found.shape == (21, 96)
    np.testing.assert_allclose(found, given[0].numpy(), atol=1e-5)


def test_the_backbone_stays_frozen_and_batches_do_not_matter(network, images):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    first = probe.features(network, images, batch=2)
    np.testing.assert_allclose(first, probe.features(network, images), atol=1e-5)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(1)
    targets = np.arange(90) % 3
    features = rng.normal(size=(90, 200)).astype(np.float32) * rng.uniform(0.01, 100, 200).astype(np.float32)
    features[:, :3] += np.eye(3, dtype=np.float32)[targets] * features[:, :3].std(0)
    return features, targets, rng.permutation(90) % 5


def test_out_of_fold_probabilities_are_those_of_scikit_learn(table):
    features, targets, folds = table
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a fit that did not converge
        found = probe.out_of_fold(features, targets, folds, 0.1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    expected = cross_val_predict(
        model, features.astype(float), targets, cv=PredefinedSplit(folds), method="predict_proba"
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert np.mean(found.argmax(1) == targets) > 0.4  # and it learns what there is to learn


def test_what_is_held_out_teaches_nothing_about_itself(table):
    features, targets, folds = table
    expected = probe.out_of_fold(features, targets, folds)
    changed_features, changed_targets = features.copy(), targets.copy()
    held_out = np.flatnonzero(folds == 2)
    changed_features[held_out[1:]] *= 1000
    changed_targets[held_out] = (targets[held_out] + 1) % 3
    found = probe.out_of_fold(changed_features, changed_targets, folds)
    np.testing.assert_array_equal(found[held_out[0]], expected[held_out[0]])


def test_a_class_within_one_fold_is_refused(table):
    features, targets, _ = table
    with pytest.raises(InputError, match="all images of class number 1 stand in fold 4"):
        probe.out_of_fold(features, targets, np.where(targets == 1, 4, np.arange(90) % 4))
