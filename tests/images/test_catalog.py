import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ultrasound.errors import InputError, ParameterError
from ultrasound.images import catalog, sources
from ultrasound.sections import Data, Download

CLASSES = ("benign", "malignant", "normal")


def picture(seed=0, size=(30, 20)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8))


def mask(lesion=True, size=(30, 20)):
    marked = np.zeros(size[::-1], dtype=bool)
    marked[5:9, 4:12] = lesion
    return Image.fromarray(marked)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for seed, label in enumerate(CLASSES):
        (root / label).mkdir(parents=True)
        picture(seed).save(root / label / f"{label} (1).png")
        mask(label != "normal").save(root / label / f"{label} (1)_mask.png")
    return root


def table_of(folder, classes=CLASSES):
    return catalog.table(folder.as_posix(), catalog.scan(folder, catalog.list_files(folder, classes)))


def row_of(folder, image_id):
    return table_of(folder).set_index("image_id").loc[image_id]


def fetch(source, build=Path("build"), **values):
    settings = {"classes": CLASSES, "path": None, "count": 6, "seed": 1} | values
    return sources.fetch(Data(source=source, **settings), Download(mirrors=(), timeout=1), build / "data", build)


def test_one_row_an_image_with_its_facts(folder):
    table = table_of(folder)
    assert table.columns.tolist() == catalog.COLUMNS
    assert table["image_id"].tolist() == ["benign/benign (1)", "malignant/malignant (1)", "normal/normal (1)"]
    assert table["label"].tolist() == list(CLASSES)
    assert table["image"].tolist() == [f"{folder.as_posix()}/{image_id}.png" for image_id in table["image_id"]]
    assert table["masks"].tolist() == [f"{folder.as_posix()}/{image_id}_mask.png" for image_id in table["image_id"]]
    assert set(zip(table["width"], table["height"], strict=True)) == {(30, 20)}
    assert table["pixels"].nunique() == 3
    assert table["mask_pixels"][0] == table["mask_pixels"][1] != table["mask_pixels"][2]


def test_scanning_counts_the_lesion_pixels_of_masks_only(folder):
    counts = {file.path: file.lesion_pixels for file in catalog.scan(folder, catalog.list_files(folder, CLASSES))}
    assert counts["benign/benign (1).png"] == 0
    assert counts["benign/benign (1)_mask.png"] == 32
    assert counts["normal/normal (1)_mask.png"] == 0


def test_a_missing_class_folder_is_named(folder):
    shutil.rmtree(folder / "malignant")
    with pytest.raises(InputError, match=r"class folder .*images/malignant is missing"):
        table_of(folder)


def test_an_empty_class_folder_is_named(folder):
    for file in (folder / "normal").iterdir():
        file.unlink()
    (folder / "normal/notes.txt").write_text("no images yet")
    with pytest.raises(InputError, match=r"class folder .*images/normal holds no PNG or JPEG image"):
        table_of(folder)


def test_other_files_and_folders_are_left_alone(folder):
    before = catalog.digest(table_of(folder))
    (folder / "benign/notes.txt").write_text("mine")
    (folder / "benign/.hidden.png").write_text("not an image")
    (folder / "axilla").mkdir()
    picture(9).save(folder / "axilla/axilla (1).png")
    assert catalog.digest(table_of(folder)) == before


@pytest.mark.parametrize("content", ["this is text", ""])
def test_a_text_file_named_png_is_refused_by_name(folder, content):
    (folder / "benign/benign (7).png").write_text(content)
    with pytest.raises(InputError, match=r"images/benign/benign \(7\)\.png is not a PNG or JPEG image"):
        table_of(folder)


def test_a_truncated_image_is_refused_by_name(folder):
    file = folder / "malignant/malignant (1).png"
    file.write_bytes(file.read_bytes()[:-150])
    with pytest.raises(InputError, match=r"images/malignant/malignant \(1\)\.png is damaged or truncated"):
        table_of(folder)


def test_an_empty_mask_of_a_lesion_is_refused_by_name(folder):
    mask(lesion=False).save(folder / "benign/benign (1)_mask.png")
    with pytest.raises(InputError, match=r"images/benign/benign \(1\)_mask\.png marks no lesion"):
        table_of(folder)


def test_a_lesion_in_a_normal_image_is_refused_by_name(folder):
    mask().save(folder / "normal/normal (1)_mask.png")
    with pytest.raises(InputError, match=r"images/normal/normal \(1\)_mask\.png marks a lesion in a normal image"):
        table_of(folder)


def test_a_mask_of_another_size_is_refused_by_name_with_both_sizes(folder):
    mask(size=(20, 30)).save(folder / "malignant/malignant (1)_mask.png")
    with pytest.raises(InputError, match=r"images/malignant/malignant \(1\)_mask\.png is 20x30, .* is 30x20"):
        table_of(folder)


def test_a_mask_without_an_image_is_refused_by_name(folder):
    mask().save(folder / "benign/benign (4)_mask_1.png")
    with pytest.raises(InputError, match=r"images/benign/benign \(4\)_mask_1\.png is a mask without an image"):
        table_of(folder)


def test_two_images_of_one_name_are_refused(folder):
    picture(5).save(folder / "benign/benign (1).jpg")
    with pytest.raises(InputError, match="same name") as error:
        table_of(folder)
    assert "benign/benign (1).jpg" in str(error.value)
    assert "benign/benign (1).png" in str(error.value)


def test_several_masks_belong_to_one_image(folder):
    for number in (1, 2, 10):
        mask().save(folder / f"benign/benign (1)_mask_{number}.png")
    row = row_of(folder, "benign/benign (1)")
    names = [Path(file).name for file in row["masks"].split(catalog.SEPARATOR)]
    assert names == [f"benign (1)_mask{suffix}.png" for suffix in ("", "_1", "_2", "_10")]
    assert len(row["mask_pixels"].split(catalog.SEPARATOR)) == 4
    assert len(table_of(folder)) == 3


def test_an_image_may_have_no_mask(folder):
    (folder / "malignant/malignant (1)_mask.png").unlink()
    row = row_of(folder, "malignant/malignant (1)")
    assert row["masks"] == row["mask_pixels"] == ""


def test_numbers_are_sorted_as_numbers(folder):
    for number in (10, 2, 100, 9):
        picture(number).save(folder / f"benign/benign ({number}).png")
    ids = table_of(folder)["image_id"].tolist()[:5]
    assert ids == [f"benign/benign ({number})" for number in (1, 2, 9, 10, 100)]


def test_the_digest_does_not_depend_on_compression_mode_place_or_order(folder, tmp_path):
    before = catalog.digest(table_of(folder))
    other = tmp_path / "elsewhere"
    for file in folder.rglob("*.png"):
        (other / file.parent.name).mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.convert("RGB").save(other / file.relative_to(folder), compress_level=0)
    table = table_of(other)
    assert catalog.digest(table) == before
    assert catalog.digest(table[::-1]) == before


def test_the_digest_depends_on_a_label(folder):
    table = table_of(folder)
    before = catalog.digest(table)
    table.loc[0, "label"] = "malignant"
    assert catalog.digest(table) != before


@pytest.mark.parametrize("path", ["benign/benign (1).png", "benign/benign (1)_mask.png"])
def test_the_digest_depends_on_every_pixel_of_images_and_masks(folder, path):
    before = catalog.digest(table_of(folder))
    with Image.open(folder / path) as image:
        changed = image.copy()
    changed.putpixel((0, 0), 255 - changed.getpixel((0, 0)))
    changed.save(folder / path)
    assert catalog.digest(table_of(folder)) != before


def test_the_digest_depends_on_which_images_there_are(folder):
    before = catalog.digest(table_of(folder))
    picture(7).save(folder / "normal/normal (2).png")
    assert catalog.digest(table_of(folder)) != before


def test_the_table_survives_its_file(folder, tmp_path):
    (folder / "malignant/malignant (1)_mask.png").unlink()
    table = table_of(folder)
    table.to_csv(tmp_path / "catalog.csv", index=False)
    again = catalog.read(tmp_path / "catalog.csv")
    pd.testing.assert_frame_equal(again, table)
    assert catalog.digest(again) == catalog.digest(table)


def test_a_table_without_any_mask_survives_its_file(folder, tmp_path):
    for file in folder.rglob("*_mask.png"):
        file.unlink()
    table = table_of(folder)
    table.to_csv(tmp_path / "catalog.csv", index=False)
    assert catalog.read(tmp_path / "catalog.csv")["masks"].tolist() == ["", "", ""]


def test_classes_that_are_numbers_or_look_missing_survive_the_file(tmp_path):
    classes = ("0", "01", "None")
    for label in classes:
        (tmp_path / label).mkdir()
        picture().save(tmp_path / label / "a.png")
    table = table_of(tmp_path, classes)
    table.to_csv(tmp_path / "catalog.csv", index=False)
    assert catalog.read(tmp_path / "catalog.csv")["label"].tolist() == list(classes)
    table[table["label"] != "None"].to_csv(tmp_path / "catalog.csv", index=False)
    assert catalog.read(tmp_path / "catalog.csv")["label"].tolist() == ["0", "01"]


def test_a_missing_table_says_how_to_make_it(tmp_path):
    with pytest.raises(InputError, match=r"catalog\.csv is missing: run `dvc repro`"):
        catalog.read(tmp_path / "catalog.csv")


def test_the_folder_source_uses_the_images_where_they_lie(folder):
    release = fetch("folder", path=str(folder))
    assert release.folder == folder
    assert [file.path for file in release.files if not file.is_mask] == [f"{name}/{name} (1).png" for name in CLASSES]


@pytest.mark.parametrize("path", [None, "/nowhere/at/all"])
def test_the_folder_source_without_a_folder_is_a_parameter_error(path):
    with pytest.raises(ParameterError, match=r"data\.path="):
        fetch("folder", path=path)


def test_the_phantom_source_makes_what_the_catalogue_accepts(tmp_path):
    release = fetch("phantom", build=tmp_path)
    table = catalog.table(release.folder.as_posix(), release.files)
    assert table["label"].value_counts().to_dict() == dict.fromkeys(CLASSES, 2)
    assert release.folder.is_relative_to(tmp_path)
    assert (table["masks"] != "").all()


def test_an_unknown_source_is_a_parameter_error_that_lists_the_known():
    with pytest.raises(ParameterError, match=r"data\.source='busy'.*busi, folder, phantom"):
        fetch("busy")
