"""`compare` and `probe` through the command line, and what they leave in MLflow."""

import mlflow
import pandas as pd
import pytest
from sklearn import metrics as sk

from tests.conftest import renewed_results, run_in, ultrasound

MODELS = "[test_resnet, resnet18=none, test_resnet=none]"  # the last is the first again, in a run of its own


def client(project):
    return mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")


@pytest.fixture(scope="module")
def compared(project):
    """The tracked comparison of two tiny networks and the probe; what it printed, and its run."""
    said = run_in(
        project, "mlflow", "run", ".", "-e", "compare", "--env-manager", "local", "-P", f"compare.models={MODELS}"
    ).stdout
    (run,) = client(project).search_runs(["0"], "tags.verb = 'compare'")
    return said, run


def test_every_model_is_scored_on_the_same_images_and_folds(project, compared):
    _, run = compared
    tables = {}
    for child in client(project).search_runs(["0"], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"):
        file = client(project).download_artifacts(child.info.run_id, "tables/predictions_out_of_fold.csv")
        tables[child.info.run_name] = pd.read_csv(file).sort_values("image_id", ignore_index=True)
    assert set(tables) == {"test_resnet", "resnet18-none", "test_resnet-none", "probe-test_resnet"}
    images = [table[["image_id", "label", "fold"]] for table in tables.values()]
    assert all(images[0].equals(others) for others in images[1:])
    splits = pd.read_csv(project / "build/splits.csv")
    assert len(images[0]) == (splits["split"] == "development").sum()
    found = pd.read_csv(client(project).download_artifacts(run.info.run_id, "tables/comparison.csv")).set_index("model")
    assert found.index.tolist() == ["test_resnet", "resnet18=none", "test_resnet=none", "probe test_resnet"]
    for name, table in tables.items():
        row = found.loc[name.replace("probe-", "probe ").replace("-none", "=none")]
        assert row["macro_f1"] == pytest.approx(sk.f1_score(table["label"], table["predicted"], average="macro"))
        assert row["macro_f1_low"] <= row["macro_f1"] <= row["macro_f1_high"]
        assert row["latency_ms"] > 0
        assert row["training_s"] > 0
    assert found["run_id"].nunique() == 4
    assert found.loc["test_resnet=none", "macro_f1_less_first"] == 0
    assert found.loc["test_resnet=none", "mcnemar_p"] == 1
    less = found.loc["resnet18=none", "macro_f1"] - found.loc["test_resnet", "macro_f1"]
    assert found.loc["resnet18=none", "macro_f1_less_first"] == pytest.approx(less)
    assert 0 <= found.loc["resnet18=none", "mcnemar_p"] <= 1
    assert found.loc["resnet18=none", "parameters"] > 20 * found.loc["test_resnet", "parameters"]


def test_the_parent_holds_figure_and_metrics_and_prints_the_table(project, compared):
    said, run = compared
    files = {file.path for file in client(project).list_artifacts(run.info.run_id, "figures")}
    assert "figures/score_against_latency.png" in files
    assert {"test_resnet/macro_f1", "resnet18-none/latency_ms", "probe-test_resnet/macro_auc"} <= set(run.data.metrics)
    lines = [line for line in said.splitlines() if line.startswith(("test_resnet", "resnet18", "probe"))]
    assert len(lines) == 4


def test_the_document_says_what_the_comparison_says(project, compared):
    _, run = compared
    found = pd.read_csv(client(project).download_artifacts(run.info.run_id, "tables/comparison.csv"))
    text = renewed_results(project, "compare", run.info.run_id)
    for _, row in found.iterrows():
        score = "{:.3f} ({:.3f} to {:.3f})".format(*(row[f"macro_f1{end}"] for end in ("", "_low", "_high")))
        assert f"| {row['model']} | {score} |" in text
    assert f"| {found['mcnemar_p'][1]:.3f} |" in text
    assert "folds: all of 3, 2 epochs each" in text
    assert (project / "docs/screenshots/compare-score_against_latency.png").stat().st_size > 10_000


def test_the_probe_alone_scores_as_in_the_comparison(project, compared):
    _, run = compared
    said = ultrasound(project, "probe", new=True).stdout
    (alone,) = client(project).search_runs(["0"], "tags.verb = 'probe' AND attributes.run_name = 'probe-test_resnet'",
                                           order_by=["attributes.start_time DESC"], max_results=1)  # fmt: skip
    assert alone.data.metrics["out_of_fold/macro_f1"] == pytest.approx(run.data.metrics["probe-test_resnet/macro_f1"])
    assert f"{alone.data.metrics['out_of_fold/macro_f1']:.3f}" in said


def test_a_model_that_timm_does_not_know_is_refused_before_any_is_trained(project):
    before = len(client(project).search_runs(["0"], "tags.verb = 'compared'"))
    refused = ultrasound(project, "compare", "--compare.models", "[test_resnet, resnet5]", expect=2)
    assert "resnet5" in refused.stderr
    twice = ultrasound(project, "compare", "--compare.models", "[test_resnet, test_resnet]", expect=2)
    assert "test_resnet more than once" in twice.stderr
    assert len(client(project).search_runs(["0"], "tags.verb = 'compared'")) == before
