"""What only a GPU can show. Skipped where there is none; docs/benchmarks.md says where it has run."""

import numpy as np
import pytest
import torch

from tests.learning import test_fitting, test_segmenter
from ultrasound.errors import InputError
from ultrasound.images.loading import Batches
from ultrasound.learning import backbone, classifier, export, fitting, memory, segmenter
from ultrasound.learning.classifier import Ensemble
from ultrasound.learning.segmenter import Outlines

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
stripes, discs = test_fitting.stripes, test_segmenter.discs  # fixtures
PRECISIONS = ["fp32", "bf16", "fp16"]


def fit(stripes, network=None, **options):
    return test_fitting.fit(stripes, network, **{"device": "cuda", **options})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_classes_are_learnt_in_every_precision_and_answered_in_full(stripes, precision):
    network, results, validation = fit(stripes, epochs=25, patience=25, precision=precision)
    results = list(results)
    assert max(result.validation["macro_f1"] for result in results) > 0.8
    assert next(network.parameters()).is_cuda
    assert next(network.parameters()).dtype == torch.float32
    best = [result for result in results if result.is_best][-1]
    tolerance = 1e-5 if precision == "fp32" else 0.05
    np.testing.assert_allclose(classifier.predict(network, validation), best.probabilities, atol=tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_stopped_training_goes_on_where_it_was(stripes, tmp_path, precision):
    options = {**test_fitting.ALL, "precision": precision, "choose": "last"}
    whole = list(fit(stripes, masks=test_fitting.outlines(), **options)[1])
    _, results, _ = fit(stripes, folder=tmp_path, masks=test_fitting.outlines(), **options)
    for result in results:
        if result.epoch == 3:
            results.close()
    again = list(fit(stripes, folder=tmp_path, masks=test_fitting.outlines(), **options)[1])
    assert [result.epoch for result in again] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(whole, again, strict=True):  # cuDNN chooses its kernels anew: not to the bit
        assert other.train["loss"] == pytest.approx(one.train["loss"], abs=0.02)
        assert other.learning_rate == one.learning_rate


def test_a_checkpoint_of_a_gpu_goes_on_on_a_cpu(stripes, tmp_path):
    _, results, _ = fit(stripes, folder=tmp_path, epochs=6, precision="fp32")
    for result in results:
        if result.epoch == 3:
            results.close()
    again = list(test_fitting.fit(stripes, folder=tmp_path, epochs=6)[1])
    assert [result.epoch for result in again] == [1, 2, 3, 4, 5, 6]
    assert np.isfinite(again[-1].validation["loss"])


def test_compiled_steps_learn_the_same(stripes):
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = backbone.create("test_resnet", "none", 3, 16, 0.0)
        results = fit(stripes, network, epochs=2, learning_rate=1e-4, precision="fp32", compile=compiled)[1]
        losses.append([result.train["loss"] for result in results])
    assert losses[1] == pytest.approx(losses[0], abs=5e-3)


def test_images_that_stay_in_the_host_s_memory_are_the_same(stripes):
    images, targets = stripes
    kept, streamed = (
        list(Batches(images, targets, 8, torch.device("cuda"), resident=resident).shuffled(3, 2))
        for resident in (True, False)
    )
    for (one, first), (other, second) in zip(kept, streamed, strict=True):
        assert one.is_cuda and other.is_cuda
        assert torch.equal(one, other) and torch.equal(first, second)


def test_a_batch_that_the_memory_does_not_hold_is_answered_with_one_that_it_does():
    total = torch.cuda.mem_get_info()[1]
    images, targets = np.zeros((512, 128, 128), np.uint8), np.arange(512) % 3
    torch.cuda.set_per_process_memory_fraction(1.5 * 2**30 / total)
    try:
        with pytest.raises(InputError, match=r"memory of cuda\S* is too small for train.batch_size=512: \d+ would fit"):
            list(_fit_large(images, targets))
        network = backbone.create("resnet50", "none", 3, 16, 0.1).cuda()
        device = fitting.accelerator(test_fitting.settings(device="cuda").train)
        assert memory.batch_that_fits(network, 128, device, 512) in (16, 32, 64, 128, 256)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def _fit_large(images, targets):
    test_fitting.AcceleratorState._reset_state(reset_partial_state=True)
    chosen = test_fitting.settings(device="cuda", batch_size=512)
    device = fitting.accelerator(chosen.train)
    network = backbone.create("resnet50", "none", 3, 16, 0.1).to(device.device)
    training = Batches(images, targets, 512, device.device)
    return fitting.fit(network, training, None, chosen.train, chosen.augment, None, device)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_outlines_and_classes_are_learnt_together(discs, precision):
    options = {"epochs": 30, "learning_rate": 0.003, "choose": "last", "head_rate": 1}
    classes = discs[1].any(axis=(1, 2)).astype(np.int64)
    network, results, validation = test_segmenter.fit(
        discs, classes=classes, classification_weight=0.5, device="cuda", precision=precision, **options
    )
    *_, last = results
    assert last.validation["lesion_dice"] > 0.8
    assert last.validation["macro_f1"] > 0.8
    levels = segmenter.predict(Outlines([network], flip=False), validation)
    assert np.abs(levels.astype(int) - last.probabilities).mean() <= 2


def test_what_a_gpu_has_learnt_answers_alike_on_a_cpu_and_as_a_graph(stripes, tmp_path):
    network, results, validation = fit(stripes, epochs=5, precision="bf16")
    list(results)
    there = classifier.predict(network, validation)
    network = network.cpu()
    images = torch.from_numpy(stripes[0][32:, None]).float() / 255
    with torch.inference_mode():
        here = network.eval()(images).softmax(dim=1).numpy()
    np.testing.assert_allclose(here, there, atol=2e-3)  # TF32 in the GPU's convolutions
    export.export(Ensemble([network], flip=False), 32, tmp_path)  # refuses a graph that answers otherwise
