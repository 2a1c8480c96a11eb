import numpy as np
import pytest
import torch

from ultrasound.images.loading import LESION, UNKNOWN, Batches

CPU = torch.device("cpu")


def batches(count=10, size=4, **options):
    images = np.arange(count * 16, dtype=np.uint8).reshape(count, 4, 4)
    return Batches(images, np.arange(count), size, CPU, **options)


@pytest.mark.parametrize("resident", [True, False])
def test_shuffled_batches_hold_every_image_once_and_depend_on_seed_and_epoch(resident):
    def order(seed, epoch):
        return [int(number) for _, chosen in batches(resident=resident).shuffled(seed, epoch) for number in chosen]

    assert len(batches(resident=resident)) == 3
    assert sorted(order(0, 1)) == list(range(10))
    assert order(0, 1) == order(0, 1) != order(0, 2) != order(1, 1)


def test_a_last_batch_of_one_image_is_left_out_of_shuffled_epochs_only():
    nine = batches(9)
    assert [len(chosen) for _, chosen in nine.shuffled(0, 1)] == [4, 4]
    assert len(nine) == 2
    assert [len(chosen) for _, chosen in nine.in_order()] == [4, 4, 1]


@pytest.mark.parametrize("resident", [True, False])
def test_rows_choose_images_and_targets_alike(resident):
    rows = np.array([7, 2, 5])
    chosen = batches(rows=rows, resident=resident)
    images, targets = (torch.cat(parts) for parts in zip(*chosen.in_order(), strict=True))
    assert targets.tolist() == chosen.targets.tolist() == [7, 2, 5]
    assert images.shape == (3, 1, 4, 4)
    assert images[:, 0, 0, 0].tolist() == [7 * 16, 2 * 16, 5 * 16]


def test_images_that_do_not_fit_are_read_from_a_memory_map_with_the_same_batches(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, (20, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    kept = Batches(mapped, np.arange(20), 6, CPU)
    monkeypatch.setattr("ultrasound.images.loading._free_bytes", lambda device: 100)
    read = Batches(mapped, np.arange(20), 6, CPU)
    assert kept._resident is not None and read._resident is None
    for one, other in zip(kept.shuffled(3, 1), read.shuffled(3, 1), strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("resident", [True, False])
def test_masks_come_as_a_second_channel_and_images_without_one_are_told_apart(resident):
    masks = np.zeros((10, 4, 4), dtype=bool)
    masks[3, 1:3, 1:3] = True
    rows, outlined = np.array([3, 4, 5]), np.arange(10) != 5
    (found, targets), *_ = batches(masks=masks, outlined=outlined, rows=rows, resident=resident).in_order()
    assert targets.tolist() == [3, 4, 5]
    assert found.shape == (3, 2, 4, 4)
    assert found[:, 0].tolist() == [
        image[0].tolist() for (part, _) in [next(batches(rows=rows).in_order())] for image in part
    ]
    assert torch.equal(found[0, 1], torch.from_numpy(masks[3]).to(torch.uint8) * LESION)
    assert found[1, 1].unique().tolist() == [0]
    assert found[2, 1].unique().tolist() == [UNKNOWN]


def test_an_epoch_that_is_given_up_leaves_no_thread(tmp_path):
    import threading

    before = threading.active_count()
    for _ in batches(resident=False).in_order():
        break
    assert threading.active_count() <= before
