import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import SMALL, copy_project, ultrasound
from ultrasound.errors import InputError
from ultrasound.images import annotations, catalog, counts, report, splitting
from ultrasound.images.sources import phantom

HOSTILE = '<img src=x onerror=alert(1)> & "it\'s"'
NAMES = {
    "benign": ["benign (1)", "benign (2)", "benign (3)", "benign (4)", "benign (5)", HOSTILE],
    "malignant": ["malignant (1)", "malignant (2)", "malignant (3)", "malignant (4)", "malignant (5)"],
    "normal": ["normal (1)", "normal (2)", "normal (3)"],
}
GROUPS = [0, 0, 0, 1, 2, 3, 4, 4, 5, 3, 6, 7, 8, 9]  # in the order of NAMES; 3 is a conflict
PLACES = {0: 0, 1: 1, 2: "test", 3: "excluded", 4: "test", 5: 0, 6: 1, 7: 0, 8: 1, 9: "test"}
REASON = "near-duplicates are labelled benign and malignant"
PAIRS = [  # group 0 hangs together as a chain, without the pair of its ends; the last pair is left apart
    ("malignant/malignant (1)", "malignant/malignant (2)", "identical", 0, 1.0, 1.0, 1.0, False, True),
    ("benign/benign (1)", "benign/benign (2)", "copy", 210, 0.91, 0.987, 0.95, False, True),
    (f"benign/{HOSTILE}", "malignant/malignant (4)", "copy", 55, 0.62, 0.934, 0.9, True, True),
    ("benign/benign (2)", "benign/benign (3)", "same view", 31, 0.4, 0.471, 0.2, False, True),
    ("benign/benign (4)", "benign/benign (5)", "same view", 8, 0.3, 0.4, 0.1, False, False),
]


class Page(HTMLParser):
    """What a browser finds in the page: every tag with its attributes, and the text by the section it stands in."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.section, self.card = [], Counter(), None, None
        self.words: dict[str, list[str]] = {}
        self.pictures: dict[str, list[dict]] = {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "section":
            self.section = attributes["aria-labelledby"]
        if tag == "article":
            self.card = attributes.get("id")
        if tag == "img":
            for place in {self.section, self.card}:
                self.pictures.setdefault(place, []).append(attributes)

    def handle_endtag(self, tag):
        if tag == "article":
            self.card = None
        if tag == "section":
            self.section = None

    def handle_data(self, data):
        for place in {self.section, self.card}:
            self.words.setdefault(place, []).append(data)

    def said(self, place):
        return " ".join(" ".join(self.words.get(place, [])).split())

    def shown(self, place):
        """Image ids of the thumbnails of a section or card."""
        return [picture["alt"].rpartition(", ")[0] for picture in self.pictures.get(place, [])]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    for label, names in NAMES.items():
        (folder / label).mkdir()
        for number, name in enumerate(names, 1):
            scan, mask = phantom.phantom(label, number, seed=3)
            scan.save(folder / label / f"{name}.png")
            mask.save(folder / label / f"{name}_mask.png")
    paths = [f"{label}/{name}{end}.png" for label, names in NAMES.items() for name in names for end in ("", "_mask")]
    table = annotations.annotate(catalog.table(folder.as_posix(), catalog.scan(folder, paths)))
    places = [PLACES[group] for group in GROUPS]
    splits = pd.DataFrame(
        {
            "image_id": table["image_id"],
            "label": table["label"],
            "group": GROUPS,
            "split": [place if isinstance(place, str) else "development" for place in places],
            "fold": pd.array([pd.NA if isinstance(place, str) else place for place in places], dtype="Int64"),
            "status": ["conflict" if group == 3 else "clean" for group in GROUPS],
            "reason": [REASON if group == 3 else "" for group in GROUPS],
        }
    )
    return table, splits, pd.DataFrame(PAIRS, columns=counts.PAIR_COLUMNS)


@pytest.fixture(scope="module")
def html(tables):
    return report.render(*tables)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def pixels(picture):
    data = base64.b64decode(picture["src"].removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_every_group_of_several_images_is_there_with_all_its_images_and_why_they_belong_together(page, tables):
    _, splits, _ = tables
    for group, members in splits.groupby("group"):
        assert page.shown(f"group-{group}") == (members["image_id"].tolist() if len(members) > 1 else [])
    assert "2 of 3 possible pairs were found; the weakest has correlation 0.471" in page.said("group-0")
    assert (
        "benign/benign (2) and benign/benign (3): same view, correlation 0.471 (speckle 0.200), 31 matching points"
        in page.said("group-0")
    )
    assert "identical, correlation 1.000" in page.said("group-4")
    assert "matching points" not in page.said("group-4")
    assert "fold 0" in page.said("group-0") and "test" in page.said("group-4")


def test_conflicts_stand_in_a_section_of_their_own_with_their_reasons(page):
    assert page.shown("conflicts") == [f"benign/{HOSTILE}", "malignant/malignant (4)"]
    assert "Near-duplicates are labelled benign and malignant." in page.said("conflicts")
    assert "62 % overlap, mirrored" in page.said("conflicts").replace("\xa0", " ")
    assert set(page.shown("duplicates")).isdisjoint(page.shown("conflicts"))


def test_larger_groups_come_first_and_weaker_pairs_first_among_the_pairs_to_look_at(page):
    assert page.shown("duplicates")[:3] == ["benign/benign (1)", "benign/benign (2)", "benign/benign (3)"]
    assert page.shown("weakest")[:2] == ["benign/benign (2)", "benign/benign (3)"]
    assert page.shown("weakest")[4:6] == ["malignant/malignant (1)", "malignant/malignant (2)"]


def test_a_pair_that_was_not_joined_is_shown_apart(page):
    assert page.shown("weakest")[6:] == ["benign/benign (4)", "benign/benign (5)"]
    assert "Pairs left apart 1 of 1" in page.said("weakest")
    assert "of group 1 and 2" in page.said("weakest")


def test_the_tables_count_what_is_there(page):
    split = page.said("split")
    assert "fold 0 3 60.0 % 1 20.0 % 1 20.0 % 5 3" in split
    assert "fold 1 1 33.3 % 1 33.3 % 1 33.3 % 3 3" in split
    assert "test 1 25.0 % 2 50.0 % 1 25.0 % 4 3" in split
    assert "excluded 1 50.0 % 1 50.0 % 0 0.0 % 2 1 -" in split
    assert "all 6 42.9 % 5 35.7 % 3 21.4 % 14 10" in split
    assert "No group of near-duplicates stands in two parts." in split
    sizes = page.said("sizes")
    assert "benign 6 6" in sizes and "malignant 5 5" in sizes and "all 14 14" in sizes


def test_the_deviation_is_the_largest_difference_of_a_class_share_from_that_of_all_kept_images(tables):
    shares = counts.share_table(counts.join(*tables[:2]))
    assert shares.loc["kept"].tolist() == pytest.approx([5 / 12, 4 / 12, 3 / 12, 0])
    assert shares.loc["fold 0", "deviation"] == pytest.approx(3 / 5 - 5 / 12)
    assert shares.loc["test", "deviation"] == pytest.approx(max(5 / 12 - 1 / 4, 2 / 4 - 4 / 12))


def test_a_group_that_is_divided_is_told(tables):
    table, splits, pairs = tables
    moved = splits.copy()
    moved.loc[0, ["split", "fold"]] = ["test", pd.NA]
    assert "1 group stands in more than one part." in Page(report.render(table, moved, pairs)).said("split")


def test_flags_are_counted_by_class_and_by_part(page, tables):
    table, splits, _ = tables
    flags = annotations.flags(table)
    said = page.said("flags")
    for name in flags:
        by_class = [int(flags[name][table["label"] == label].sum()) for label in NAMES]
        by_part = [int(flags[name][splits["fold"] == fold].sum()) for fold in (0, 1)]
        by_part += [int(flags[name][splits["split"] == part].sum()) for part in ("test", "excluded")]
        assert f"{name.replace('_', ' ')} {' '.join(map(str, by_class + by_part))} {flags[name].sum()}" in said


def test_examples_of_each_class_show_the_margin_of_the_lesion(page):
    for picture in page.pictures["classes"]:
        red, green, blue = pixels(picture).transpose(2, 0, 1)
        yellow = int(((red > 180) & (green > 150) & (blue < 90)).sum())
        assert (yellow == 0) if "normal/" in picture["alt"] else (yellow > 40), picture["alt"]
        assert ("lesion outlined" in picture["alt"]) == ("normal/" not in picture["alt"])
    assert len(page.pictures["classes"]) == 14


def test_every_picture_is_a_small_jpeg_with_a_text_and_its_size(page):
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    for picture in pictures:
        assert pixels(picture).shape[:2] == (int(picture["height"]), int(picture["width"]))
        assert max(int(picture["height"]), int(picture["width"])) <= 180
        assert picture["alt"]


def test_the_page_asks_for_nothing_outside_itself(html, page):
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "srcset", "action", "data", "poster"}:
                assert value.startswith(("#", "data:image/jpeg;base64,")), value
    style = html.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"} <= set(ids)


def test_a_hostile_file_name_is_text(html, page):
    assert "<img src=x" not in html
    assert f"benign/{HOSTILE}" in page.shown("group-3")
    assert f"benign/{HOSTILE}" in page.said("group-3")


def test_the_page_names_data_and_split_and_is_no_medical_device(html, tables):
    table, splits, _ = tables
    assert catalog.digest(table) in html and splitting.digest(splits) in html
    assert "not a medical device" in html
    assert '<html lang="en">' in html


def test_the_same_tables_give_the_same_bytes_and_they_are_few(html, tables):
    assert report.render(*tables) == html
    assert len(html.encode()) < 20_000 + 50 * 10_000  # about 50 pictures


def test_without_pairs_the_page_says_so(tables):
    table, splits, pairs = tables
    alone = splits.assign(group=range(len(splits)), status="clean", reason="")
    page = Page(report.render(table, alone, pairs.head(0)))
    assert "None: near-duplicates always carry the same label." in page.said("conflicts")
    assert "None were found." in page.said("duplicates") and "None were found." in page.said("weakest")


def test_tables_of_different_images_are_refused(tables):
    table, splits, pairs = tables
    with pytest.raises(InputError, match="list different images"):
        report.render(table, splits[::-1], pairs)


@pytest.mark.parametrize("second", ["benign/benign (4)", "benign/unknown"])
def test_a_pair_across_groups_is_refused_by_name(tables, second):
    table, splits, pairs = tables
    wrong = pairs.copy()
    wrong.loc[1, "second"] = second
    with pytest.raises(InputError, match=r"benign/benign \(1\) and " + re.escape(second)):
        report.render(table, splits, wrong)


def test_an_image_that_has_changed_is_refused_by_name(tables, tmp_path):
    table, splits, pairs = tables
    Image.new("L", (300, 200)).save(tmp_path / "other.png")
    changed = table.copy()
    changed.loc[0, "image"] = (tmp_path / "other.png").as_posix()
    with pytest.raises(InputError, match=r"other\.png has changed"):
        report.render(changed, splits, pairs)


def test_a_table_of_pairs_that_is_missing_or_another_is_told(tmp_path):
    with pytest.raises(InputError, match="is missing: run `dvc repro`"):
        counts.read_pairs(tmp_path / "duplicates.csv")
    (tmp_path / "duplicates.csv").write_text("first,second\n")
    with pytest.raises(InputError, match="lacks the column method"):
        counts.read_pairs(tmp_path / "duplicates.csv")


@pytest.fixture(scope="module")
def written(tables, tmp_path_factory):
    """The page as the verb writes it."""
    folder = copy_project(tmp_path_factory.mktemp("report") / "project", SMALL)
    (folder / "build").mkdir()
    for table, name in zip(tables, ("catalog", "splits", "duplicates"), strict=True):
        table.to_csv(folder / "build" / f"{name}.csv", index=False)
    said = ultrasound(folder, "report").stdout
    return folder / "build/data-report.html", said


def test_the_verb_writes_the_same_page_from_the_stages_tables(written, html):
    file, said = written
    assert file.read_text() == html
    assert "14 images, 5 pairs" in said


def test_the_verb_says_what_is_missing(written, tmp_path):
    folder = copy_project(tmp_path / "project", SMALL)
    assert "build/catalog.csv is missing" in ultrasound(folder, "report", expect=1).stderr
    assert "data-report.html" in ultrasound(folder, "report", "--help").stdout


@pytest.fixture
def tab(browser, written):
    """The page in a browser, with what it complains about."""
    file, _ = written
    context = browser.new_context(viewport={"width": 390, "height": 844}, offline=True, reduced_motion="reduce")
    tab = context.new_page()
    tab.complaints = []
    tab.on("console", lambda message: tab.complaints.append(message.text))
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.on("dialog", lambda dialog: tab.complaints.append(dialog.message))
    tab.on(
        "request",
        lambda request: tab.complaints.extend([] if request.url.startswith(("file:", "data:")) else [request.url]),
    )
    tab.goto(file.as_uri())
    yield tab
    context.close()


def test_a_browser_shows_every_picture_without_a_complaint(tab):
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    tab.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    widths = tab.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) > 20 and min(widths) > 0
    assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark_and_text_stands_out(tab, scheme):
    tab.emulate_media(color_scheme=scheme)
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    colours = tab.evaluate(
        "['body', 'figcaption', 'a', 'td small'].map(name => getComputedStyle(document.querySelector(name)).color)"
    )
    ground = tab.evaluate("[getComputedStyle(document.body).backgroundColor,"
                          " getComputedStyle(document.querySelector('.card')).backgroundColor]")  # fmt: skip
    assert min(contrast(colour, back) for colour in colours for back in ground) >= 4.5  # WCAG 2.2, 1.4.3
    assert (luminance(ground[0]) < 0.1) == (scheme == "dark")


def test_the_keyboard_opens_a_list_of_pairs_and_skips_to_the_report(tab):
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the report"
    details = tab.locator("#group-0 details")
    assert details.get_attribute("open") is None
    details.locator("summary").focus()
    tab.keyboard.press("Enter")
    assert details.get_attribute("open") is not None
    assert details.locator("li").first.is_visible()


def luminance(colour):
    """Relative luminance of `rgb(r, g, b)` by WCAG 2.2."""
    levels = [int(level) / 255 for level in re.findall(r"\d+", colour)[:3]]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one, other):
    darker, lighter = sorted([luminance(one), luminance(other)])
    return (lighter + 0.05) / (darker + 0.05)
