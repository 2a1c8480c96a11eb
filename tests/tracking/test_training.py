"""What a training asks of its data before it begins."""

import numpy as np
import pandas as pd
import pytest

from tests.conftest import PROJECT
from ultrasound.errors import InputError
from ultrasound.images.preparation import Preparation
from ultrasound.images.prepared import Prepared
from ultrasound.params import load
from ultrasound.tracking import folds
from ultrasound.tracking.classification import CLASSIFICATION
from ultrasound.tracking.segmentation import SEGMENTATION
from ultrasound.tracking.training import require_outlines


def data(outlined):
    """Ten images, two a fold, with a mask where `outlined` says so."""
    outlined = np.array(outlined, dtype=bool)
    masks = np.zeros((10, 8, 8), bool)
    masks[outlined, 2:5, 2:5] = True
    samples = pd.DataFrame({"split": "development", "fold": np.arange(10) // 2, "outlined": outlined})
    return Prepared(np.zeros((10, 8, 8), np.uint8), masks, samples, Preparation(8), "d", "s")


def test_every_fold_needs_an_outline_and_all_are_asked_before_the_first_is_trained(tmp_path):
    params, lacking = load({"train.folds": "all"}, PROJECT / "params.yaml"), data([1] * 6 + [0, 0, 1, 1])
    for fold in (0, 1, 2, 4, None):
        require_outlines(SEGMENTATION, params, lacking, fold)
    with pytest.raises(InputError, match=r"^no image of fold 3 has a lesion mask.*: add masks$"):
        folds.cross_validate(params, lacking, tmp_path, task=SEGMENTATION)
    assert not list(tmp_path.iterdir())
    require_outlines(CLASSIFICATION, params, lacking, 3)


def test_without_a_mask_to_learn_from_each_task_says_its_own_way_on():
    params = load({"train.segmentation_weight": 1}, PROJECT / "params.yaml")
    for fold in (4, None):
        with pytest.raises(InputError, match=r"^no training image has a lesion mask: add masks$"):
            require_outlines(SEGMENTATION, params, data([0] * 8 + [fold == 4] * 2), fold)
    with pytest.raises(InputError, match=r"add masks; train\.segmentation_weight=0 needs none$"):
        require_outlines(CLASSIFICATION, params, data([0] * 10), 0)
    require_outlines(CLASSIFICATION, load({}, PROJECT / "params.yaml"), data([0] * 10), 0)
