"""Every number of the data card comes from a command, a citation, or the release that data.dvc pins."""

import re
import shutil
import sys

import mlflow
import pandas as pd
import pytest

from tests.conftest import PROJECT, run_in
from ultrasound import params
from ultrasound.images import catalog, counts, splitting

CARD = PROJECT / "docs/data-card.md"
SCRIPT = str(PROJECT / "scripts/data_card.py")
BLOCKS = ["release", "classes", "flags", "duplicates", "conflicts", "split", "leakage"]
TEMPLATE = "# A card\n\nText 1.\n\n" + "\n".join(
    f"<!-- numbers: {name} -->\nold\n<!-- end -->\n\nText 2.\n" for name in BLOCKS
)
# image, group, where it is, width, masks, calipers, lesions, share of lesion
IMAGES = [
    ("benign/benign (1)", 0, 0, 300, 1, 1.0, 1, 0.10),
    ("benign/benign (2)", 0, 0, 310, 1, 0.0, 1, 0.20),
    ("benign/benign (3)", 1, 1, 400, 2, 0.0, 2, 0.30),
    ("benign/benign (4)", 2, "excluded", 500, 1, 0.0, 1, 0.05),
    ("malignant/malignant (1)", 2, "excluded", 500, 1, 0.0, 1, 0.05),
    ("malignant/malignant (2)", 3, 0, 600, 1, 1.0, 1, 0.15),
    ("malignant/malignant (3)", 4, 1, 610, 1, 0.0, 1, 0.25),
    ("normal/normal (1)", 5, "test", 700, 1, 0.0, 0, 0.0),
]
PAIRS = [
    ("benign/benign (1)", "benign/benign (2)", "copy", 40, 0.9, 0.97, 0.95, True, True),
    ("benign/benign (4)", "malignant/malignant (1)", "identical", 0, 1.0, 1.0, 1.0, False, True),
    ("benign/benign (3)", "malignant/malignant (3)", "same view", 9, 0.8, 0.5, 0.2, False, False),
]
SCORES = {"random": (0.81, 0.78, 0.84), "grouped": (0.745, 0.71, 0.78), "difference": (0.065, 0.04, 0.09)}


def tables():
    columns = ["image_id", "group", "place", "width", "masks", "calipers", "lesions", "lesion_share"]
    rows = pd.DataFrame(IMAGES, columns=columns)
    label = rows["image_id"].str.partition("/")[0]
    table = pd.DataFrame(
        {
            "image_id": rows["image_id"],
            "label": label,
            "image": rows["image_id"] + ".png",
            "masks": [
                "|".join(f"{image}_mask_{number}.png" for number in range(masks))
                for image, masks in zip(rows["image_id"], rows["masks"], strict=True)
            ],
            "width": rows["width"],
            "height": 400,
            "pixels": [f"a{number:063x}" for number in range(len(rows))],
            "mask_pixels": "",
            "coloured": 0.0,
            "doppler": 0,
            "calipers": rows["calipers"],
            "text": 0.0,
            "border": 0.0,
            "lesions": rows["lesions"],
            "lesion_share": rows["lesion_share"],
        }
    )
    is_fold = rows["place"].map(lambda place: isinstance(place, int))
    splits = pd.DataFrame(
        {
            "image_id": rows["image_id"],
            "label": label,
            "group": rows["group"],
            "split": rows["place"].where(~is_fold, "development"),
            "fold": rows["place"].where(is_fold, pd.NA).astype("Int64"),
            "status": ["conflict" if group == 2 else "clean" for group in rows["group"]],
            "reason": ["near-duplicates are labelled so and so" if group == 2 else "" for group in rows["group"]],
        }
    )
    return table, splits, pd.DataFrame(PAIRS, columns=counts.PAIR_COLUMNS)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A real MLflow store: the right run of leakage, and others that are older, failed, or of something else."""
    folder = tmp_path_factory.mktemp("store")
    table, splits, _ = tables()
    today = {"data_digest": catalog.digest(table), "split_digest": splitting.digest(splits)}
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("audit", artifact_location=(folder / "artifacts").as_uri())

    def log(start, offset, status="FINISHED", parameters=None, **tags):
        run = client.create_run(experiment, start_time=start, tags={"verb": "leakage"} | today | tags).info.run_id
        used = params.flatten(params.load(file=PROJECT / "params.yaml"), ("preprocess", "leakage"))
        for name, value in (used | (parameters or {})).items():
            client.log_param(run, name, value)
        scores = {
            folds: {
                metric: {"value": value + offset, "low": low, "high": high}
                for metric in ("accuracy", "macro_f1", "macro_auc")
            }
            for folds, (value, low, high) in SCORES.items()
        }
        facts = {"images": 5, "groups": 4, "folds": 2, "seeds": [0, 1, 2], "suspect_labels": 1}
        client.log_dict(run, facts | {"scores": scores}, "leakage.json")
        client.set_terminated(run, status)

    log(1000, 0.1)
    log(2000, 0)
    log(3000, 0.1, status="FAILED")
    log(3000, 0.1, data_digest="0" * 16)
    log(3000, 0.1, split_digest="0" * 16)
    log(3000, 0.1, verb="train")
    log(3000, 0.1, parameters={"leakage.recipe": "finetune"})
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "build").mkdir()
    for table, name in zip(tables(), ("catalog", "splits", "duplicates"), strict=True):
        table.to_csv(tmp_path / "build" / f"{name}.csv", index=False)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/data-card.md").write_text(TEMPLATE)
    (tmp_path / "README.md").write_text("No numbers here.\n")
    for name in ("data.dvc", "params.yaml"):
        shutil.copy(PROJECT / name, tmp_path)
    return tmp_path


def run(folder, *arguments, uri="sqlite:///mlflow.db", expect=0):
    source = {"PYTHONPATH": str(PROJECT / "src"), "MLFLOW_TRACKING_URI": uri}
    # With all that a fork holds, libraries have the last word on stderr.
    return run_in(folder, sys.executable, SCRIPT, *arguments, expect=expect, new=True, **source)


def block(folder, name):
    return re.search(rf"<!-- numbers: {name} -->\n(.*?)<!-- end -->", (folder / "docs/data-card.md").read_text(), re.S)[
        1
    ]


def test_one_command_writes_every_number_and_check_then_agrees(folder, store):
    assert "docs/data-card.md: renewed" in run(folder, uri=store).stdout
    assert "1,578 files of 266,185,470 bytes in all, DVC hash `3ddd834f456f00fbaade5bf68c8b4c78.dir`" in block(
        folder, "release"
    )
    assert catalog.digest(tables()[0]) in block(folder, "release")
    assert "| benign | 4 (50.0 %) | 5 | 1 | 300 to 500, 355 | 400 to 400, 400 | 15.0 % |" in block(folder, "classes")
    assert "| normal | 1 (12.5 %) | 1 | 0 | 700 to 700, 700 | 400 to 400, 400 | no lesion |" in block(folder, "classes")
    assert "| all | 8 (100.0 %) | 9 | 1 |" in block(folder, "classes")
    assert "| calipers | 1 | 1 | 0 | 0 | 2 |" in block(folder, "flags")
    duplicates = block(folder, "duplicates")
    assert "3 pairs (1 copy, 1 identical, 1 same view), 1 of them mirrored, join 4 images to 2 groups" in duplicates
    assert "have made too large a group: 1." in duplicates
    assert "The 8 images are 6 independent groups." in duplicates
    assert "| 1 | 4 |\n| 2 | 2 |" in duplicates
    assert "1 group, 2 images:\n\n- `benign/benign (4)` = `malignant/malignant (1)` (excluded)" in block(
        folder, "conflicts"
    )
    # kept are 3 benign, 2 malignant, 1 normal; the test set holds a normal one alone
    split = block(folder, "split")
    assert "| fold 0 | 2 (66.7 %) | 1 (33.3 %) | 0 (0.0 %) | 3 | 2 | 16.7 |" in split
    assert "| test | 0 (0.0 %) | 0 (0.0 %) | 1 (100.0 %) | 1 | 1 | 83.3 |" in split
    assert "| excluded | 1 (50.0 %) | 1 (50.0 %) | 0 (0.0 %) | 2 | 1 |  |" in split
    assert "83.3 percentage points; groups that stand in more than one part: 0." in split
    leakage = block(folder, "leakage")
    assert "| accuracy | 0.810 (0.780 to 0.840) | 0.745 (0.710 to 0.780) | 0.065 (0.040 to 0.090) |" in leakage
    assert (
        leakage.count("0.810 (0.780 to 0.840)") == 3
        and "`leakage.recipe=probe`" in leakage
        and "5 development images" in leakage
    )
    text = (folder / "docs/data-card.md").read_text()
    assert text.startswith("# A card\n\nText 1.\n") and text.count("Text 2.") == len(BLOCKS) and "\nold\n" not in text
    assert (folder / "README.md").read_text() == "No numbers here.\n"
    assert "nothing to renew" in run(folder, "--check", uri=store).stdout


def test_check_shows_a_number_that_was_written_by_hand_and_changes_nothing(folder):
    card = folder / "docs/data-card.md"
    card.write_text("<!-- numbers: split -->\n<!-- end -->\n")
    run(folder)
    card.write_text(card.read_text().replace("66.7 %", "67.7 %"))
    before = card.read_text()
    result = run(folder, "--check", expect=1)
    assert "-| fold 0 | 2 (67.7 %)" in result.stdout and "+| fold 0 | 2 (66.7 %)" in result.stdout
    assert "make data-card" in result.stderr
    assert card.read_text() == before


def test_a_split_that_no_run_of_leakage_has_seen_is_told_and_nothing_is_written(folder, store):
    splits = tables()[1]
    splits.loc[2, "fold"] = 0
    splits.to_csv(folder / "build/splits.csv", index=False)
    result = run(folder, uri=store, expect=1)
    assert "no finished run of leakage" in result.stderr
    assert "mlflow run . -e leakage" in result.stderr
    assert (folder / "docs/data-card.md").read_text() == TEMPLATE


def test_any_document_can_hold_a_block_and_without_leakage_no_run_is_asked_for(folder):
    (folder / "other.md").write_text("a\n<!-- numbers: split -->\n<!-- end -->\nb\n")
    run(folder, "other.md", uri="sqlite:////nowhere/mlflow.db")
    text = (folder / "other.md").read_text()
    assert text.startswith("a\n<!-- numbers: split -->\n\n| part |") and text.endswith("part: 0.\n\n<!-- end -->\nb\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<!-- numbers: ages -->\n<!-- end -->\n", "unknown numbers 'ages': there are release, classes"),
        ("<!-- numbers: split -->\n\n<!-- numbers: flags -->\n<!-- end -->\n", "without its `<!-- end -->`"),
        ("<!-- numbers: split -->\n", "without its `<!-- end -->`"),
        (None, "other.md is missing"),
    ],
)
def test_a_document_that_cannot_be_renewed_is_told_and_none_is_written(folder, text, told):
    if text:
        (folder / "other.md").write_text(text)
    (folder / "docs/data-card.md").write_text("<!-- numbers: split -->\n<!-- end -->\n")
    result = run(folder, "docs/data-card.md", "other.md", expect=1)
    assert told in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert (folder / "docs/data-card.md").read_text() == "<!-- numbers: split -->\n<!-- end -->\n"


def test_the_stages_outputs_must_be_there(folder):
    (folder / "build/duplicates.csv").unlink()
    assert "build/duplicates.csv is missing: run `dvc repro` first" in run(folder, expect=1).stderr


def test_the_committed_card_has_every_block_and_outside_them_only_citations():
    text = CARD.read_text()
    assert re.findall(r"<!-- numbers: (\w+) -->", text) == BLOCKS
    prose = re.sub(r"<!-- numbers: \w+ -->.*?<!-- end -->", "", text, flags=re.S)
    prose = re.sub(r"`[^`]*`", "", prose)  # commands and keys
    for paragraph in re.split(r"\n\n|\n(?=- )", prose):
        if re.search(r"\d", paragraph):
            assert re.search(r"[A-Z]\S+.*?\b(19|20)\d\d\b", paragraph, re.S), paragraph
