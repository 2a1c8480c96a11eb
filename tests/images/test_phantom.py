"""Phantoms: deterministic, shaped like BUSI, with honest speckle, and not to be told apart by brightness."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_predict

from ultrasound.errors import InputError
from ultrasound.images.sources.phantom import CLASSES, envelope, phantom, write


def thumbnail(image: Image.Image) -> NDArray[np.float64]:
    small = np.asarray(image.resize((48, 48), Image.Resampling.BOX), float)
    return (small - small.mean()) / small.std()


def likeness(one: Image.Image, other: Image.Image) -> float:
    """Best correlation of the thumbnails over the crops of `one` that a repeated scan may show."""
    w, h = one.size
    crops = [
        (w * a, h * b, w * (1 - c), h * (1 - d))
        for a in (0, 0.015)
        for b in (0, 0.015)
        for c in (0, 0.015)
        for d in (0, 0.015)
    ]
    views = [thumbnail(one.crop(tuple(round(side) for side in crop))) for crop in crops]
    return max(float(np.mean(view * thumbnail(other))) for view in views)


@pytest.mark.parametrize("label", CLASSES)
def test_a_phantom_depends_on_its_label_index_and_seed_alone(label: str) -> None:
    scan, mask = phantom(label, 2, 7)
    again, same_mask = phantom(label, 2, 7)
    assert scan.tobytes() == again.tobytes() and mask.tobytes() == same_mask.tobytes()
    assert scan.tobytes() not in {phantom(label, 3, 7)[0].tobytes(), phantom(label, 2, 8)[0].tobytes()}


@pytest.mark.parametrize("label", CLASSES)
@pytest.mark.parametrize("index", [1, 2, 3, 4, 5, 6, 9, 10, 20, 30])
def test_scan_and_mask_fit_together(label: str, index: int) -> None:
    scan, mask = phantom(label, index, 0)
    assert (scan.mode, mask.mode) == ("L", "1")
    assert scan.size == mask.size
    assert 364 <= scan.width <= 620 and 306 <= scan.height <= 520  # repeated ones are cropped
    area = np.asarray(mask).mean()
    assert area == 0 if label == "normal" else 0.02 <= area <= 0.25


def test_a_class_without_phantom_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cyst"):
        phantom("cyst", 1, 0)
    with pytest.raises(InputError, match="cyst"):
        write(tmp_path / "phantoms", ["benign", "cyst"], 4, 0)
    assert not list(tmp_path.iterdir())


def test_files_are_laid_out_as_in_busi(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "phantoms"
    folder.mkdir(parents=True)
    (folder / "stale.txt").touch()
    write(folder, CLASSES, 7, 5)
    shares = {"benign": 3, "malignant": 2, "normal": 2}
    expected = {f"{c}/{c} ({i}){end}.png" for c, n in shares.items() for i in range(1, n + 1) for end in ("", "_mask")}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == expected
    assert list(folder.parent.iterdir()) == [folder]  # nothing temporary is left
    for end, made in zip(("", "_mask"), phantom("benign", 2, 5), strict=True):
        with Image.open(folder / "benign" / f"benign (2){end}.png") as stored:
            assert stored.mode == made.mode and stored.tobytes() == made.tobytes()


def test_files_do_not_depend_on_how_many_are_made(tmp_path: Path) -> None:
    write(tmp_path / "few", ["malignant"], 1, 3)
    write(tmp_path / "more", ["normal", "malignant"], 5, 3)
    for path in (tmp_path / "few").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "more" / path.relative_to(tmp_path / "few")).read_bytes()


@pytest.mark.parametrize("label", CLASSES)
def test_each_tenth_scan_shows_the_ninth_again(label: str) -> None:
    scans = {index: phantom(label, index, 0)[0] for index in (6, 7, 8, 9, 10, 11)}
    tenth = scans.pop(10)
    assert tenth.width < scans[9].width and tenth.height < scans[9].height
    ninth = likeness(scans.pop(9), tenth)
    assert ninth > 0.9
    assert ninth > 0.1 + max(likeness(other, tenth) for other in scans.values())


def test_speckle_of_homogeneous_tissue_is_fully_developed() -> None:
    amplitude = envelope(np.zeros((400, 500), np.float32), np.random.default_rng(0))
    assert amplitude.mean() / amplitude.std() == pytest.approx(1.91, abs=0.05)  # Wagner et al. 1983
    assert np.mean(amplitude[:100] ** 2) == pytest.approx(1, abs=0.05)
    assert np.mean(amplitude[-100:] ** 2) == pytest.approx(1, abs=0.05)


def test_brightness_alone_does_not_tell_the_classes() -> None:
    indices = [index for index in range(1, 67) if index % 10]  # 60 different scans of each class
    brightness = np.array([[np.asarray(phantom(label, index, 0)[0]).mean()] for label in CLASSES for index in indices])
    labels = np.repeat(CLASSES, len(indices))
    guess = cross_val_predict(LogisticRegression(), (brightness - brightness.mean()) / brightness.std(), labels)
    assert len(indices) == 60
    assert balanced_accuracy_score(labels, guess) < 0.7
