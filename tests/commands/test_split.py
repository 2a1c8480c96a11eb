"""The split stage through the real `dvc repro`: what it writes, and that added images move no test image."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.conftest import run_in, ultrasound


@pytest.fixture(scope="module")
def grown(project: Path, tmp_path_factory: pytest.TempPathFactory):
    """The phantom project, its test set kept, before and after half as many images again were added."""
    folder = tmp_path_factory.mktemp("grown") / "project"
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns("mlruns", "mlflow.db", "prepared"))
    before = pd.read_csv(folder / "build/splits.csv")
    shutil.copy(folder / "build/test_set.csv", folder / "test_set.csv")
    kept = run_in(folder, "dvc", "repro", "split").stdout
    values = yaml.safe_load((folder / "params.yaml").read_text())
    values["data"]["count"] += 42
    values["split"]["seed"] += 1
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    added = run_in(folder, "dvc", "repro", "split").stdout
    return folder, before, kept, pd.read_csv(folder / "build/splits.csv"), added


def test_added_images_and_another_seed_move_no_image_out_of_the_test_set(grown):
    _, before, _, after, _ = grown
    assert len(after) == len(before) + 42
    test = {
        name: set(splits.loc[splits["split"] == "test", "image_id"]) for name, splits in (("b", before), ("a", after))
    }
    assert test["b"] < test["a"]  # all of them, and new ones to keep the share
    groups = after.drop_duplicates("group")
    assert (groups["split"] == "test").mean() == pytest.approx(0.2, abs=0.02)


def test_the_hint_how_to_keep_the_test_set_comes_until_it_is_kept(project: Path, grown):
    _, before, kept, after, added = grown
    assert "cp build/test_set.csv test_set.csv" in ultrasound(project, "split").stdout
    assert "cp build/test_set.csv" not in kept
    new = (after["split"] == "test").sum() - (before["split"] == "test").sum()
    assert f"{new} test images are not in test_set.csv" in added


def test_every_pair_is_written_with_its_evidence(project: Path):
    pairs = pd.read_csv(project / "build/duplicates.csv")
    groups = pd.read_csv(project / "build/splits.csv").set_index("image_id")["group"]
    # Each tenth phantom of a class shows the ninth again: 28 of each class, so two pairs each.
    expected = {(f"{label}/{label} ({n - 1})", f"{label}/{label} ({n})")
                for label in ("benign", "malignant", "normal") for n in (10, 20)}  # fmt: skip
    assert set(zip(pairs["first"], pairs["second"], strict=True)) == expected
    assert (pairs["inliers"] >= 6).all() and (pairs["correlation"] > 0.8).all() and (pairs["overlap"] > 0.9).all()
    assert (groups[pairs["first"]].to_numpy() == groups[pairs["second"]].to_numpy()).all()


def test_the_folds_are_exported_for_nnunet(project: Path):
    folds = json.loads((project / "build/splits_final.json").read_text())
    splits = pd.read_csv(project / "build/splits.csv")
    assert [len(fold["val"]) for fold in folds] == splits["fold"].value_counts().sort_index().tolist()
    assert all(not set(fold["train"]) & set(fold["val"]) for fold in folds)


def test_a_missing_test_set_is_told_with_the_remedy(fresh: Path):
    (fresh / "test_set.csv").unlink()
    run_in(fresh, sys.executable, "-m", "ultrasound", "download")
    message = ultrasound(fresh, "split", expect=1).stderr
    assert "test_set.csv (split.test_set) is missing" in message
    assert "image_id,label,pixels" in message
