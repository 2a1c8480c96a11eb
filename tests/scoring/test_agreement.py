import numpy as np
import pytest

from ultrasound.scoring import agreement


def test_peak_and_share_of_the_heat_by_hand():
    masks = np.zeros((4, 4, 4), dtype=bool)
    masks[:, 1:3, 1:3] = True
    maps = np.zeros((4, 4, 4), dtype=np.float32)
    maps[0, 1, 1], maps[0, 0, 0] = 3, 1  # hottest in the lesion, a quarter of the heat elsewhere
    maps[1, 0, 0], maps[1, 2, 2] = 3, 1
    maps[2] = 1  # the same everywhere: the first pixel is as hot as any, and lies outside
    found = agreement.agreement(maps, maps, masks)  # the last map has no heat
    assert found.peak.tolist() == [True, False, False, False]
    assert found.heat.tolist() == pytest.approx([0.75, 0.25, 0.25, 0])
    assert found.area.tolist() == pytest.approx([0.25] * 4)
    assert found.centre.all()


def test_the_peak_is_the_centre_of_the_hottest_cell_also_at_the_edge():
    maps = np.zeros((4, 7, 7), dtype=np.float32)
    masks = np.zeros((4, 224, 224), dtype=bool)
    for number, (row, column) in enumerate(((0, 0), (0, 6), (6, 3), (3, 3))):
        maps[number, row, column] = 1
        masks[number, 32 * row + 12 : 32 * row + 20, 32 * column + 12 : 32 * column + 20] = True
    enlarged = np.repeat(np.repeat(maps, 32, axis=1), 32, axis=2)
    assert agreement.agreement(maps, enlarged, masks).peak.all()
    assert not agreement.agreement(maps, enlarged, masks[::-1])[0][:3].any()


def test_similarity_is_the_rank_correlation_and_0_for_flat_maps():
    rng = np.random.default_rng(0)
    maps = rng.random((3, 7, 7)).astype(np.float32)
    others = np.stack([maps[0] ** 3, -maps[1], np.zeros((7, 7), np.float32)])
    assert agreement.similarity(maps, others).tolist() == pytest.approx([1, -1, 0])
    assert abs(agreement.similarity(rng.random((300, 7, 7)), rng.random((300, 7, 7))).mean()) < 0.05
