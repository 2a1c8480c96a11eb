import time
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.conftest import ARCHIVE, PROJECT
from ultrasound import params
from ultrasound.commands import CATALOG, download
from ultrasound.errors import InputError
from ultrasound.images import annotations, catalog, overlay
from ultrasound.images.sources.phantom import CLASSES, phantom

WHITE = 230  # the level of a scanner's overlay
YELLOW = (240, 230, 60)
FLAGS = ["coloured", "doppler", "calipers", "text", "black border", "several lesions"]

# Labelled by eye: a random sample of BUSI (b benign, m malignant, n normal), those with calipers, those with lettering.
SAMPLE = """
b1 b3 b5 b7 b10 b11 b13 b15 b24 b25 b26 b36 b37 b38 b40 b42 b44 b45 b50 b55 b56 b57 b58 b62 b64 b65 b66 b71 b72 b75
b76 b77 b81 b88 b89 b93 b98 b101 b107 b111 b114 b115 b116 b122 b126 b131 b141 b143 b152 b158 b160 b161 b163 b166 b167
b168 b170 b173 b177 b185 b188 b190 b193 b194 b196 b197 b200 b204 b209 b213 b214 b216 b217 b219 b220 b229 b230 b232
b234 b235 b246 b249 b252 b254 b255 b256 b257 b259 b263 b268 b271 b275 b276 b278 b282 b283 b289 b291 b294 b300 b303
b311 b312 b314 b315 b321 b328 b329 b330 b334 b335 b339 b341 b342 b344 b350 b354 b357 b366 b368 b369 b373 b376 b381
b382 b385 b391 b404 b407 b408 b410 b413 b416 b419 b422 b424 b427 b432 b433 b435 m1 m3 m5 m10 m12 m13 m14 m16 m20 m21
m22 m25 m28 m30 m32 m33 m37 m39 m40 m49 m50 m56 m57 m61 m63 m68 m75 m78 m81 m84 m85 m87 m90 m92 m95 m97 m99 m103 m104
m108 m110 m111 m115 m117 m118 m121 m122 m124 m125 m126 m129 m131 m137 m139 m142 m143 m145 m146 m149 m153 m155 m158
m166 m169 m172 m176 m178 m180 m185 m187 m201 m203 m206 n1 n13 n14 n21 n23 n26 n31 n41 n42 n45 n50 n53 n59 n60 n62 n64
n65 n66 n75 n77 n85 n86 n91 n95 n96 n99 n100 n104 n111 n113 n115 n120 n121 n123 n124 n126 n130 n131 n132
"""
CALIPERS = """
b5 b11 b64 b115 b141 b200 b204 b209 b213 b214 b216 b217 b220 b229 b230 b232 b234 b246 b249 b252 b259 b263 b268 b271
b275 b276 b278 b282 b289 b300 b303 b328 b366 b373 b416 b427 b432 b433 m10 m12 m14 m103 m110 m111 m118 m121 m122 m124
m125 m126 m129 m131 m145 m169
"""
TEXT = """
b1 b3 b196 b200 b204 b209 b229 b230 b235 b249 b252 b254 b255 b256 b257 b259 b263 b275 b278 b282 b289 b291 b294 b300
b321 b334 b342 b366 b373 b407 b408 b410 b422 b432 m10 m12 m13 m61 m110 m111 m139 m143 m180 m201 n31 n77 n121
"""


def scan(label="benign", index=1):
    """A phantom that is bright enough to be drawn on, in colour, and its mask."""
    image, mask = phantom(label, index, seed=3)
    return image.convert("RGB"), mask


def cross(image, x, y, arm=8, width=3, colour=(WHITE,) * 3):
    draw = ImageDraw.Draw(image)
    draw.line((x - arm, y, x + arm, y), colour, width)
    draw.line((x, y - arm, x, y + arm), colour, width)


def dots(image, start, end, colour=(WHITE,) * 3):
    draw = ImageDraw.Draw(image)
    steps = int(np.hypot(end[0] - start[0], end[1] - start[1]) / 5)
    for x, y in np.linspace(start, end, steps):
        draw.rectangle((x, y, x + 1, y + 1), colour)


def write(image, x, y, words, colour=(WHITE,) * 3, size=19):
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text((x, y), words, colour, font, stroke_width=0.4, stroke_fill=colour)


def measured(image, colour=(WHITE,) * 3):
    """Draw a measurement as a scanner does: crosses, their number, a dotted line."""
    cross(image, 150, 200, colour=colour)
    cross(image, 260, 190, colour=colour)
    dots(image, (150, 200), (260, 190), colour)
    write(image, 128, 195, "1", colour)
    return image


def black_corners(image, wide, high):
    draw = ImageDraw.Draw(image)
    draw.polygon(((0, 0), (wide, 0), (0, high)), 0)
    draw.polygon(((image.width, 0), (image.width - wide, 0), (image.width, high)), 0)
    return image


def table_of(folder, *images):
    """The annotated catalogue of (image, masks), all benign."""
    (folder / "benign").mkdir(parents=True)
    for number, (image, masks) in enumerate(images, start=1):
        image.save(folder / f"benign/benign ({number}).png")
        for rank, mask in enumerate(masks):
            mask.save(folder / f"benign/benign ({number})_mask{f'_{rank}' if rank else ''}.png")
    paths = catalog.list_files(folder, ["benign"])
    return annotations.annotate(catalog.table(folder.as_posix(), catalog.scan(folder, paths)))


def raised(folder, image, masks=()):
    """The annotations of one image, and the names of the flags that it raises."""
    table = table_of(folder, (image, masks))
    flags = annotations.flags(table).iloc[0]
    assert flags.index.tolist() == FLAGS
    return table.iloc[0], set(flags.index[flags])


def outlined(*boxes, size=(200, 100)):
    mask = Image.new("1", size)
    for box in boxes:
        ImageDraw.Draw(mask).rectangle(box, fill=1)
    return mask


def test_clean_phantoms_raise_no_flag(tmp_path):
    images = [scan(label, index) for label in CLASSES for index in (1, 2, 3, 4, 5)]
    table = table_of(tmp_path, *((image, [mask]) for image, mask in images if mask.getbbox()))
    assert table.columns.tolist() == catalog.COLUMNS + annotations.COLUMNS
    flags = annotations.flags(table)
    assert flags.dtypes.unique().tolist() == [bool]
    assert not flags.any(axis=None)
    assert (table["lesions"] == 1).all()
    assert table["lesion_share"].between(0.01, 0.5).all()


@pytest.mark.parametrize(("arm", "width"), [(6, 1), (7, 2), (8, 3), (12, 3)])
@pytest.mark.parametrize("index", [1, 2, 3])
def test_two_crosses_are_calipers(tmp_path, arm, width, index):
    image, _ = scan("malignant", index)
    cross(image, 120, 150, arm, width)
    cross(image, 300, 220, arm, width)
    assert raised(tmp_path, image)[1] == {"calipers"}


def test_a_cross_alone_is_no_measurement(tmp_path):
    image, _ = scan()
    cross(image, 120, 150)
    row, flags = raised(tmp_path, image)
    assert row["calipers"] < overlay.SURE
    assert flags == set()


def test_the_number_and_the_dotted_line_of_calipers_are_no_text(tmp_path):
    assert raised(tmp_path, measured(scan()[0]))[1] == {"calipers"}


def test_calipers_that_a_phantom_carries_are_found(tmp_path):
    shown, table = [], []
    for label in ("benign", "malignant"):
        for index in (10, 20, 30, 40):  # the repetitions, half of which are measured
            image, mask = phantom(label, index, seed=5)
            levels = np.asarray(image)
            line = (levels[:, :-12] == 240) & np.all([levels[:, k : k - 12 or None] == 240 for k in range(12)], axis=0)
            shown.append(bool(line.any()))
            table.append((image, [mask]))
    assert 2 <= sum(shown) <= 6
    assert annotations.flags(table_of(tmp_path, *table))["calipers"].tolist() == shown


@pytest.mark.parametrize("words", ["RT", "LT 3", "RIGHT BREAST", "lt axilla", "L UOQ"])
@pytest.mark.parametrize("place", [(200, 250), (90, 120)])
def test_lettering_is_text(tmp_path, words, place):
    image, _ = scan()
    write(image, *place, words)
    assert raised(tmp_path, image)[1] == {"text"}


def test_a_word_that_is_cut_at_the_edge_is_text(tmp_path):
    image, _ = scan()
    write(image, -17, 250, "RT")
    assert raised(tmp_path, image)[1] == {"text"}


def test_the_scanners_mark_in_the_corner_is_no_text(tmp_path):
    image, _ = scan()
    write(image, 4, 2, "LOGIQ", size=15)
    row, flags = raised(tmp_path, image)
    assert row["text"] == 0
    assert flags == set()


def test_calipers_and_text_are_both_told(tmp_path):
    image = measured(scan()[0])
    write(image, 180, 280, "RT AXILLA")
    assert raised(tmp_path, image)[1] == {"calipers", "text"}


def test_yellow_marks_are_coloured_and_no_doppler(tmp_path):
    image = measured(scan()[0], YELLOW)
    write(image, 180, 280, "RT UOQ", YELLOW)
    assert raised(tmp_path, image)[1] == {"coloured", "calipers", "text"}


def test_a_few_coloured_pixels_are_counted(tmp_path):
    image, _ = scan()
    image.putpixel((5, 5), (90, 95, 90))  # as grey as compression leaves it
    assert raised(tmp_path / "tint", image)[0]["coloured"] == 0
    ImageDraw.Draw(image).rectangle((50, 60, 59, 69), (250, 90, 90))
    row, flags = raised(tmp_path / "patch", image)
    assert row["coloured"] == pytest.approx(100 / image.width / image.height, abs=0.00005)
    assert flags >= {"coloured"}


@pytest.mark.parametrize("colour", [(200, 30, 10), (20, 40, 220)])
def test_a_colour_box_or_flow_is_doppler(tmp_path, colour):
    box, flow = scan()[0], scan()[0]
    ImageDraw.Draw(box).rectangle((80, 40, 280, 200), outline=(130, 130, 80))
    ImageDraw.Draw(flow).ellipse((150, 90, 170, 105), fill=colour)
    for name, image in (("box", box), ("flow", flow)):
        assert raised(tmp_path / name, image)[1] == {"coloured", "doppler"}


def test_a_border_is_its_share_of_the_area(tmp_path):
    image, _ = scan()
    framed = Image.new("RGB", (image.width + 60, image.height + 30))
    framed.paste(image, (45, 10))
    row, flags = raised(tmp_path, framed)
    inside = image.width * image.height / framed.width / framed.height
    assert row["border"] == pytest.approx(1 - inside, abs=0.001)
    assert flags == {"black border"}


def test_black_corners_above_a_sector_are_border(tmp_path):
    image = black_corners(scan()[0], 90, 160)
    row, flags = raised(tmp_path, image)
    assert row["border"] == pytest.approx(90 * 160 / image.width / image.height, rel=0.1)
    assert flags == {"black border"}


def test_the_mark_in_a_black_corner_hardly_changes_its_share(tmp_path):
    image = black_corners(scan()[0], 120, 160)
    write(image, 10, 2, "LOGIQ", size=15)
    row, flags = raised(tmp_path, image)
    assert row["border"] == pytest.approx(120 * 160 / image.width / image.height, rel=0.15)
    assert flags == {"black border"}


def test_a_black_shadow_is_no_border_even_where_it_meets_a_corner(tmp_path):
    image = black_corners(scan()[0], 60, 100)
    draw = ImageDraw.Draw(image)
    draw.rectangle((8, 84, 110, image.height), 0)
    draw.rectangle((250, 80, 320, image.height), 0)
    row, _ = raised(tmp_path, image)
    assert row["border"] == pytest.approx(60 * 100 / image.width / image.height, rel=0.15)


def test_lesions_are_counted_as_they_are_outlined(tmp_path):
    grey = Image.new("L", (200, 100), 120)
    one, touching, inside = outlined((20, 20, 59, 69)), outlined((60, 20, 99, 69)), outlined((30, 30, 39, 39))
    specks = outlined((20, 20, 59, 69), (150, 5, 150, 6), (180, 90, 180, 90))
    parts = outlined((20, 20, 59, 69), (120, 20, 139, 39))
    masks = [[one], [one, touching], [one, inside], [specks], [parts], []]
    table = table_of(tmp_path, *((grey, each) for each in masks))
    assert table["lesions"].tolist() == [1, 2, 1, 1, 2, 0]
    assert table["lesion_share"].tolist() == [0.1, 0.2, 0.1, 0.1002, 0.12, 0]
    assert annotations.flags(table)["several lesions"].tolist() == [False, True, False, False, True, False]


def test_marks_cover_what_is_drawn_and_little_else():
    clean, _ = scan("malignant", 2)
    drawn = measured(clean.copy())
    write(drawn, 180, 280, "RT AXILLA")
    before, after = (np.asarray(image.convert("L")) for image in (clean, drawn))
    covered = overlay.marks(after)
    assert covered.shape == after.shape
    assert covered.dtype == bool
    changed = np.abs(after.astype(int) - before) > 30
    assert changed.sum() > 800
    assert covered[changed].mean() > 0.97
    assert covered.mean() < 0.06
    assert overlay.marks(before).mean() < 0.003


def test_marks_never_cover_a_large_bright_area():
    grey = np.asarray(scan()[0].convert("L")).copy()
    grey[100:200, 100:300] = 255
    grey[220:224, 50:400] = 240  # a bright fascia
    assert overlay.marks(grey)[90:230, 50:350].mean() < 0.01


def test_marks_are_found_fast():
    grey = np.asarray(measured(scan()[0].resize((600, 500))).convert("L"))
    times = []
    for _ in range(5):
        begun = time.process_time()
        overlay.marks(grey)
        times.append(time.process_time() - begun)
    assert min(times) < 0.015


def test_flags_follow_the_thresholds_and_keep_the_index():
    low = {"coloured": 0.0, "doppler": 0, "calipers": 0.49, "text": 0.49, "border": 0.0049, "lesions": 1}
    high = {"coloured": 0.0001, "doppler": 1, "calipers": 0.5, "text": 0.5, "border": 0.005, "lesions": 2}
    flags = annotations.flags(pd.DataFrame([low, high], index=[7, 3]))
    assert flags.index.tolist() == [7, 3]
    assert flags.to_numpy().tolist() == [[False] * 6, [True] * 6]


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (30, 20), (12, 400)])
def test_images_of_any_size_and_content_are_annotated(tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    contents = [Image.fromarray(pixels), Image.new("L", size), Image.new("RGB", size, (255,) * 3)]
    table = table_of(tmp_path, *((image, []) for image in contents))
    assert table[annotations.COLUMNS].to_numpy().min() >= 0
    assert table[["coloured", "calipers", "text", "border", "lesion_share"]].to_numpy().max() <= 1
    for image in contents:
        assert overlay.marks(np.asarray(image.convert("L"))).shape == size[::-1]


def test_the_table_is_the_same_each_time_survives_its_file_and_keeps_the_data_digest(tmp_path):
    image = measured(scan()[0])
    table = table_of(tmp_path, (image, [scan()[1]]), scan_with_masks())
    pd.testing.assert_frame_equal(annotations.annotate(table[catalog.COLUMNS]), table)
    table.to_csv(tmp_path / "catalog.csv", index=False)
    pd.testing.assert_frame_equal(catalog.read(tmp_path / "catalog.csv"), table)
    assert catalog.digest(table) == catalog.digest(table[catalog.COLUMNS])


def scan_with_masks():
    image, mask = scan("malignant", 3)
    return image, [mask]


def test_a_file_that_vanished_is_named(tmp_path):
    table = table_of(tmp_path, scan_with_masks())
    (tmp_path / "benign/benign (1).png").unlink()
    with pytest.raises(InputError, match=r"benign/benign \(1\)\.png is missing"):
        annotations.annotate(table)


def test_the_download_stage_writes_the_annotations(tmp_path, monkeypatch, capsys):
    asked = {"data.source": "phantom", "data.count": 6}
    parameters = params.load(asked, PROJECT / "params.yaml")
    monkeypatch.chdir(tmp_path)
    download.run(parameters)
    table = catalog.read(CATALOG)
    assert table.columns.tolist() == catalog.COLUMNS + annotations.COLUMNS
    assert table["lesions"].tolist() == [1, 1, 1, 1, 0, 0]
    assert f"data digest {catalog.digest(table[catalog.COLUMNS])}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def busi(tmp_path_factory):
    if not ARCHIVE.is_file():
        pytest.skip("the BUSI archive is not here: set BUSI_ARCHIVE")
    folder = tmp_path_factory.mktemp("busi")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    files = sorted(folder.rglob("*.png"))
    images = [file for file in files if "_mask" not in file.name]
    masks = {image: [str(file) for file in files if file.name.startswith(f"{image.stem}_mask")] for image in images}
    table = pd.DataFrame(
        {
            "image_id": [image.stem for image in images],
            "label": [image.parent.name for image in images],
            "image": [str(image) for image in images],
            "masks": [catalog.SEPARATOR.join(masks[image]) for image in images],
        }
    )
    return annotations.annotate(table)


def named(short):
    label = next(label for label in CLASSES if label[0] == short[0])
    return f"{label} ({short[1:]})"


def test_the_16_coloured_images_of_busi(busi):
    flags = annotations.flags(busi)
    coloured = busi[flags["coloured"]]
    assert (len(busi), len(coloured)) == (780, 16)
    assert coloured["label"].value_counts().to_dict() == {"benign": 12, "malignant": 3, "normal": 1}
    doppler = ("b6", "b13", "b102", "b234", "b240", "b255", "b261", "b277", "b323", "b330", "m196")
    assert set(busi[flags["doppler"]]["image_id"]) == {named(short) for short in doppler}


def test_the_17_images_of_busi_with_several_masks(busi):
    several = busi["masks"].str.contains(catalog.SEPARATOR, regex=False)
    assert several.sum() == 17
    # One of the masks of benign (58) lies within the other.
    assert set(busi[busi["lesions"] > 1]["image_id"]) == set(busi[several]["image_id"]) - {"benign (58)"}
    assert (busi["lesions"] == 0).equals(busi["label"] == "normal")


@pytest.mark.parametrize(("flag", "labelled"), [("calipers", CALIPERS), ("text", TEXT)])
def test_calipers_and_text_agree_with_labels_made_by_eye(busi, flag, labelled):
    sample = SAMPLE.split()
    found = annotations.flags(busi)[flag].set_axis(busi["image_id"])[[named(short) for short in sample]]
    true = np.isin(sample, labelled.split())
    assert len(true) == 252
    assert found[true].mean() >= 0.95
    assert found[~true].mean() <= 0.01
