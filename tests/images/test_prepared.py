import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import PROJECT
from ultrasound import params
from ultrasound.commands import CATALOG, PREPARED, SPLITS, preprocess
from ultrasound.errors import InputError
from ultrasound.images import catalog, prepared, splitting
from ultrasound.images.preparation import Preparation
from ultrasound.images.sources import phantom

SIZE = 64
PLACES = [("test", None), ("development", 0), ("development", 1)]  # of each class's three images


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    for label in phantom.CLASSES:
        (folder / label).mkdir()
        for number in (1, 2, 3):
            scan, mask = phantom.phantom(label, number, seed=5)
            scan.save(folder / label / f"{label} ({number}).png")
            mask.save(folder / label / f"{label} ({number})_mask.png")
    with Image.open(folder / "benign/benign (1).png") as scan:
        second = np.zeros((scan.height, scan.width), dtype=bool)
    second[-40:, -60:] = True
    Image.fromarray(second).save(folder / "benign/benign (1)_mask_1.png")
    (folder / "malignant/malignant (1)_mask.png").unlink()
    return folder


def table_of(folder):
    return catalog.table(folder.as_posix(), catalog.scan(folder, catalog.list_files(folder, phantom.CLASSES)))


def splits_of(table):
    places = pd.DataFrame(PLACES * 3, columns=["split", "fold"]).astype({"fold": "Int64"})
    known = table[["image_id", "label"]].assign(group=range(len(table)))
    return pd.concat([known, places], axis=1).assign(status="clean", reason="")[splitting.COLUMNS]


@pytest.fixture(scope="module")
def table(phantoms):
    return table_of(phantoms)


@pytest.fixture(scope="module")
def made(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("build") / "prepared"
    return folder, prepared.write(table, splits_of(table), Preparation(SIZE), folder)


@pytest.fixture
def build(tmp_path):
    return tmp_path / "build"


@pytest.fixture
def copy(phantoms, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(phantoms, folder)
    return folder, table_of(folder)


@pytest.fixture
def damaged(made, tmp_path):
    folder = tmp_path / "prepared"
    shutil.copytree(made[0], folder)
    assert len(prepared.read(folder).samples) == 9  # sound so far
    return folder


def change(file):
    with Image.open(file) as image:
        changed = image.copy()
    changed.putpixel((3, 4), changed.getpixel((3, 4)) ^ 1 if changed.mode == "L" else 255 - changed.getpixel((3, 4)))
    changed.save(file)


def test_what_is_written_is_read(made, table):
    folder, written = made
    again = prepared.read(folder)
    for one in (written, again):
        assert one.images.shape == one.masks.shape == (9, SIZE, SIZE)
        assert (one.images.dtype, one.masks.dtype) == (np.uint8, np.bool_)
        assert isinstance(one.images, np.memmap)
        assert isinstance(one.masks, np.memmap)
        assert one.preparation == Preparation(SIZE)
        assert one.data_digest == catalog.digest(table)
        assert one.split_digest == splitting.digest(splits_of(table))
        outlined = (table["masks"] != "").to_numpy()
        pd.testing.assert_frame_equal(one.samples, splits_of(table).assign(outlined=outlined))
    assert np.array_equal(written.images, again.images)
    assert np.array_equal(written.masks, again.masks)
    assert [path.name for path in folder.parent.iterdir()] == ["prepared"]


def test_the_images_are_those_of_the_files_in_the_order_of_the_catalogue(made, table):
    for prepared_image, file in zip(made[1].images, table["image"], strict=True):
        with Image.open(file) as image:
            expected = np.asarray(image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        assert np.array_equal(prepared_image, expected)


def test_the_masks_are_merged_and_empty_where_there_is_none(made, phantoms):
    masks = dict(zip(made[1].samples["image_id"], made[1].masks, strict=True))
    assert not masks["malignant/malignant (1)"].any()
    assert not any(masks[f"normal/normal ({number})"].any() for number in (1, 2, 3))
    for image_id, suffixes in (("benign/benign (1)", ("_mask", "_mask_1")), ("malignant/malignant (2)", ("_mask",))):
        marked = np.logical_or.reduce([np.asarray(Image.open(phantoms / f"{image_id}{end}.png")) for end in suffixes])
        assert masks[image_id].mean() == pytest.approx(marked.mean(), rel=0.05)
        middle, expected = ([axis.mean() / n for axis, n in zip(np.nonzero(m), m.shape, strict=True)]
                            for m in (masks[image_id], marked))  # fmt: skip
        assert middle == pytest.approx(expected, abs=0.02)


def test_images_and_masks_are_cropped_alike(copy, build):
    folder, _ = copy
    bounded = folder.with_name("bordered")
    for file in sorted(folder.rglob("*.png")):
        with Image.open(file) as image:
            bordered = Image.new(image.mode, (image.width + 110, image.height + 50))
            bordered.paste(image, (80, 20))
        (bounded / file.parent.name).mkdir(parents=True, exist_ok=True)
        bordered.save(bounded / file.relative_to(folder))
    written = []
    for root in (folder, bounded):
        table = table_of(root)
        written.append(prepared.write(table, splits_of(table), Preparation(SIZE, crop=True), build / root.name))
    plain, cropped = written
    assert cropped.preparation == prepared.read(build / "bordered").preparation == Preparation(SIZE, crop=True)
    assert np.array_equal(cropped.images, plain.images)
    assert np.array_equal(cropped.masks, plain.masks)
    assert cropped.masks.any(axis=(1, 2)).sum() == 5  # three benign and two malignant images have a mask


@pytest.mark.parametrize("crop", [False, True])
def test_the_preprocess_stage_crops_if_asked(table, tmp_path, monkeypatch, crop):
    parameters = params.load({"preprocess.crop": crop, "preprocess.size": 32}, PROJECT / "params.yaml")
    monkeypatch.chdir(tmp_path)
    CATALOG.parent.mkdir()
    table.to_csv(CATALOG, index=False)
    splits_of(table).to_csv(SPLITS, index=False)
    preprocess.run(parameters)
    assert prepared.read(PREPARED).preparation == Preparation(32, crop, "pad")


def test_what_was_prepared_before_there_was_a_crop_is_read(damaged):
    facts = json.loads((damaged / "prepared.json").read_text())
    del facts["preparation"]["crop"]
    (damaged / "prepared.json").write_text(json.dumps(facts))
    assert prepared.read(damaged).preparation == Preparation(SIZE, crop=False)


def test_rows_are_those_of_a_split_of_a_fold_or_of_all_folds_but_one(made):
    one = made[1]
    assert one.rows("test").tolist() == [0, 3, 6]
    assert one.rows("development").tolist() == [1, 2, 4, 5, 7, 8]
    assert one.rows("development", 0).tolist() == [1, 4, 7]
    assert one.rows("development", 0, without=True).tolist() == [2, 5, 8]
    assert one.rows("excluded").tolist() == []


def test_an_older_result_is_replaced(table, build):
    (build / "prepared").mkdir(parents=True)
    (build / "prepared/stale.txt").write_text("old")
    (build / "prepared.unfinished").mkdir()  # of a process that was killed
    prepared.write(table, splits_of(table), Preparation(32), build / "prepared")
    assert [path.name for path in build.iterdir()] == ["prepared"]
    assert not (build / "prepared/stale.txt").exists()


@pytest.mark.parametrize("path", ["malignant/malignant (2).png", "benign/benign (3)_mask.png"])
def test_a_file_that_changed_after_the_catalogue_was_made_is_refused_by_name(copy, build, path):
    folder, table = copy
    change(folder / path)
    with pytest.raises(InputError) as error:
        prepared.write(table, splits_of(table), Preparation(32), build / "prepared")
    assert f"{folder.as_posix()}/{path} has changed" in str(error.value)
    assert not (build / "prepared").exists()


def test_a_file_that_vanished_is_refused_by_name(copy, build):
    folder, table = copy
    (folder / "normal/normal (1).png").unlink()
    with pytest.raises(InputError, match=r"normal/normal \(1\)\.png is missing"):
        prepared.write(table, splits_of(table), Preparation(32), build / "prepared")
    assert not (build / "prepared").exists()


def test_a_failed_preparation_leaves_nothing_half_written(copy, build):
    folder, table = copy
    change(folder / "malignant/malignant (2).png")
    with pytest.raises(InputError):
        prepared.write(table, splits_of(table), Preparation(32), build / "prepared")
    assert [path.name for path in build.iterdir()] == []


def test_a_file_that_was_only_compressed_anew_passes(copy, build):
    folder, table = copy
    with Image.open(folder / "normal/normal (1).png") as image:
        image.convert("RGB").save(folder / "normal/normal (1).png", compress_level=1)
    assert len(prepared.write(table, splits_of(table), Preparation(32), build / "prepared").images) == 9


def test_a_catalogue_and_a_split_of_different_images_are_refused(table, build):
    with pytest.raises(InputError, match=r"different images: run `dvc repro`"):
        prepared.write(table, splits_of(table)[::-1], Preparation(32), build / "prepared")
    assert not build.exists()


def test_a_missing_folder_says_to_run_dvc_repro(tmp_path):
    with pytest.raises(InputError, match=r"nowhere holds no prepared images: run `dvc repro`"):
        prepared.read(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["images.npy", "masks.npy"])
@pytest.mark.parametrize("keep", [0, 50, 5000])
def test_a_truncated_array_is_told(damaged, name, keep):
    content = (damaged / name).read_bytes()
    (damaged / name).write_bytes(content[:keep])
    with pytest.raises(InputError, match=r"prepared is damaged.*dvc repro"):
        prepared.read(damaged)


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "samples.csv"])
def test_a_part_that_is_missing_is_told(damaged, name):
    (damaged / name).unlink()
    with pytest.raises(InputError, match="dvc repro"):
        prepared.read(damaged)


@pytest.mark.parametrize(
    "content",
    ["", '{"preparation": {"size": 64', "{}", '{"preparation": {"crop": 1}}', '{"preparation": {"size": 64}}'],
)
def test_damaged_facts_are_told(damaged, content):
    (damaged / "prepared.json").write_text(content)
    with pytest.raises(InputError, match=r"prepared is damaged.*dvc repro"):
        prepared.read(damaged)


def test_arrays_of_another_size_than_the_facts_say_are_told(damaged):
    facts = (damaged / "prepared.json").read_text()
    (damaged / "prepared.json").write_text(facts.replace(f'"size": {SIZE}', '"size": 96'))
    with pytest.raises(InputError, match=r"prepared is damaged.*dvc repro"):
        prepared.read(damaged)


@pytest.mark.parametrize("name", ["images.npy", "masks.npy"])
def test_an_array_that_lacks_an_image_is_told(damaged, name):
    np.save(damaged / name, np.load(damaged / name)[:-1])
    with pytest.raises(InputError, match=r"prepared is damaged.*dvc repro"):
        prepared.read(damaged)


def test_a_table_of_other_length_than_the_arrays_is_told(damaged):
    lines = (damaged / "samples.csv").read_text().splitlines(keepends=True)
    (damaged / "samples.csv").write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match=r"prepared is damaged.*dvc repro"):
        prepared.read(damaged)
