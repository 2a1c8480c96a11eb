"""The script behind docs/results.md: real runs of train, small, and what it writes of them."""

import re
import shutil
import sys

import mlflow
import pandas as pd
import pytest
import yaml
from sklearn import metrics as sk

from tests.conftest import PROJECT, run_in

SCRIPT = "scripts/recipes.py"
DOCUMENT = "# Results\n\nAbove.\n\n<!-- numbers: recipes -->\nof last time\n<!-- end -->\n\nBelow.\n"


@pytest.fixture(scope="module")
def compared(prepared, tmp_path_factory):
    """Two recipes, trained on phantoms; and what the script said."""
    folder = prepared(tmp_path_factory.mktemp("recipes") / "project")
    shutil.copytree(PROJECT / "scripts", folder / "scripts")
    recipes = {name: {"train.epochs": epochs} for name, epochs in (("plain", 1), ("longer", 4), ("never run", 99))}
    content = {"common": {"train.folds": "all", "train.refit": False, "train.learning_rate": 0.003}, "recipes": recipes}
    (folder / "scripts/recipes.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (folder / "docs").mkdir()
    (folder / "docs/results.md").write_text(DOCUMENT)
    said = run_in(folder, sys.executable, SCRIPT, "--only", "plain", "longer", new=True)
    return folder, said.stdout


def test_the_document_says_what_the_runs_say(compared):
    folder, said = compared
    assert "renewed with plain, longer" in said
    text = (folder / "docs/results.md").read_text()
    assert text.startswith("# Results\n\nAbove.\n")
    assert text.endswith("\nBelow.\n")
    assert "of last time" not in text
    assert (folder / "docs/screenshots/recipes.png").stat().st_size > 10_000
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("recipes").experiment_id
    parents = client.search_runs([experiment], "tags.verb = 'train'", order_by=["attributes.start_time"])
    assert len(parents) == 2
    scores = []
    for name, parent in zip(("plain", "longer"), parents, strict=True):
        artifacts = folder / "mlruns" / experiment / parent.info.run_id / "artifacts"
        table = pd.read_csv(artifacts / "tables/predictions_out_of_fold.csv")
        macro_f1 = sk.f1_score(table["label"], table["predicted"], average="macro")
        (line,) = re.findall(rf"^\| {name} \| ([\d.]+) \(([\d.]+) to ([\d.]+)\) \| ([\d.]+)", text, re.MULTILINE)
        assert float(line[0]) == pytest.approx(macro_f1, abs=5e-4)
        assert float(line[1]) <= macro_f1 <= float(line[2])
        assert float(line[3]) == pytest.approx(sk.balanced_accuracy_score(table["label"], table["predicted"]), abs=5e-4)
        scores.append(macro_f1)
    assert scores[0] != scores[1]
    (difference,) = re.findall(r"^\| longer \| ([+-][\d.]+) \(", text, re.MULTILINE)
    assert float(difference) == pytest.approx(scores[1] - scores[0], abs=1e-3)
    folds = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parents[1].info.run_id}'")
    curves = [client.get_metric_history(run.info.run_id, "validation/macro_f1") for run in folds]
    last = [next(point.value for point in curve if point.step == 4) for curve in curves]
    gaps = [max(point.value for point in curve) - value for curve, value in zip(curves, last, strict=True)]
    (written,) = re.findall(r"^\| longer \| [+-].*\| ([\d.]+) \|$", text, re.MULTILINE)
    assert float(written) == pytest.approx(sum(gaps) / len(gaps), abs=6e-4)
    assert "-P train.epochs=4" in text


def test_finished_recipes_are_not_trained_again(compared):
    folder, _ = compared
    text = (folder / "docs/results.md").read_text()
    said = run_in(folder, sys.executable, SCRIPT, "--report")
    assert "step" not in said.stderr
    assert (folder / "docs/results.md").read_text() == text
    again = run_in(folder, sys.executable, SCRIPT, "--only", "plain")
    assert "=== Running" not in again.stderr


def test_a_document_without_a_place_is_left_alone(compared, tmp_path):
    folder, _ = compared
    document = folder / "docs/results.md"
    kept = document.read_text()
    document.write_text("# Results\n")
    said = run_in(folder, sys.executable, SCRIPT, "--report", expect=1)
    assert "holds no place for numbers" in said.stderr
    assert document.read_text() == "# Results\n"
    document.write_text(kept)
