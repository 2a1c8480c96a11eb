"""`leakage` through the real tools on phantoms, and with planted near-duplicates."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from accelerate.state import AcceleratorState

from tests.conftest import run_in, ultrasound
from ultrasound import params
from ultrasound.errors import ParameterError
from ultrasound.images import prepared
from ultrasound.scoring import metrics
from ultrasound.tracking import leakage

METRICS = ("accuracy", "macro_f1", "macro_auc")


def client(project):
    return mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")


def runs(project, verb):
    return list(client(project).search_runs(["0"], f"tags.verb = '{verb}'", order_by=["attributes.start_time"]))


def artifact(project, run, name):
    return Path(client(project).download_artifacts(run.info.run_id, name))


def table(project, run, name):
    return pd.read_csv(artifact(project, run, f"tables/{name}.csv"))


@pytest.fixture(autouse=True)
def another_process():
    """Accelerate keeps the precision of the first use in a process; tests of the training loop use others."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def compared(project):
    """The run and what was printed."""
    done = run_in(
        project, "mlflow", "run", ".", "-e", "leakage", "--env-manager", "local",
        "-P", "leakage.seeds=2", "-P", "leakage.resamples=400",
    )  # fmt: skip
    return runs(project, "leakage")[-1], done.stdout


def test_a_run_holds_both_scores_with_intervals_and_their_difference(project: Path, compared):
    run, output = compared
    values = run.data.metrics
    for metric in METRICS:
        for protocol in ("random", "grouped"):
            name = f"{protocol}/{metric}"
            assert 0 <= values[f"{name}_low"] <= values[name] <= values[f"{name}_high"] <= 1
        difference = values[f"random/{metric}"] - values[f"grouped/{metric}"]
        assert values[f"difference/{metric}"] == pytest.approx(difference)
        assert f"{values[f'difference/{metric}']:+.3f} ({values[f'difference/{metric}_low']:+.3f} to " in output
        assert f"{values[f'grouped/{metric}']:.3f} ({values[f'grouped/{metric}_low']:.3f} to " in output
    assert values["random/accuracy"] > 0.5  # chance is a third
    facts = json.loads((project / "build/prepared/prepared.json").read_text())
    for digest in ("data_digest", "split_digest"):
        assert run.data.tags[digest] == facts[digest]
        assert facts[digest] in output
    assert run.data.params["leakage.seeds"] == "2"
    report = json.loads(artifact(project, run, "leakage.json").read_text())
    assert report["scores"]["grouped"]["macro_f1"]["value"] == pytest.approx(values["grouped/macro_f1"])
    assert len(report["scores"]["difference"]["accuracy"]["by_seed"]) == 2
    assert artifact(project, run, "figures/leakage.png").stat().st_size > 10_000


def test_only_development_images_are_scored_and_each_once_a_seed(project: Path, compared):
    run, output = compared
    samples = prepared.read(project / "build/prepared").samples
    development = samples.loc[samples["split"] == "development", "image_id"].tolist()
    assert f"{len(development)} development images" in output
    labels = ["benign", "malignant", "normal"]
    for protocol in ("random", "grouped"):
        found = table(project, run, f"out_of_fold_{protocol}")
        scores = []
        for _, one in found.groupby("seed"):
            assert one["image_id"].tolist() == development
            assert set(one["fold"]) == {0, 1, 2}
            targets = one["label"].map(labels.index).to_numpy()
            scores.append(metrics.score(targets, one[[f"p_{label}" for label in labels]].to_numpy(), labels))
        assert len(scores) == 2
        for metric in METRICS:
            mean = np.mean([score[metric] for score in scores])
            assert run.data.metrics[f"{protocol}/{metric}"] == pytest.approx(mean)


def compare(project, monkeypatch, copies, **values):
    """Compare on the development phantoms, one a group, each in `copies` copies that are one group."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    original = prepared.read(Path("build/prepared"))
    development = original.samples["split"] == "development"
    rows = np.repeat(np.flatnonzero(development & ~original.samples["group"].duplicated()), copies)
    samples = original.samples.iloc[rows].reset_index(drop=True)
    planted = original._replace(images=original.images[rows], masks=original.masks[rows], samples=samples)
    with mlflow.start_run():
        return leakage.compare(
            params.load({f"leakage.{name}": value for name, value in values.items()} | {"leakage.resamples": 400}),
            planted,
        )


def test_planted_near_duplicates_flatter_random_folds_and_without_any_there_is_no_difference(project, monkeypatch):
    single, copied = compare(project, monkeypatch, 1, seeds=10), compare(project, monkeypatch, 4, seeds=2)
    assert single.samples["group"].is_unique
    for metric, difference in single.scores["difference"].items():
        assert difference.low < 0 < difference.high, metric
        assert copied.scores["difference"][metric].low > 0.05, metric
    assert copied.scores["random"]["accuracy"].value > 0.95
    truth = single.scores["grouped"]["accuracy"]  # copies add nothing to what grouped folds can learn
    assert truth.low < copied.scores["grouped"]["accuracy"].value < truth.high
    groups = copied.samples["group"].to_numpy()
    for fold in copied.folds["grouped"]:
        assert pd.Series(fold).groupby(groups).nunique().eq(1).all()
    for fold in copied.folds["random"]:
        assert pd.Series(fold).groupby(groups).nunique().gt(1).mean() > 0.8


def test_finetune_trains_every_fold_of_both_protocols_as_train_does(project: Path):
    output = ultrasound(
        project, "leakage", "--leakage.recipe", "finetune", "--leakage.seeds", "1", "--train.epochs", "1",
        "--leakage.resamples", "100",
    ).stdout  # fmt: skip
    run = runs(project, "leakage")[-1]
    children = [
        child for child in runs(project, "leakage-fold") if child.data.tags["mlflow.parentRunId"] == run.info.run_id
    ]
    assert [child.info.run_name for child in children] == [
        f"{protocol}-seed0-fold{fold}" for protocol in ("random", "grouped") for fold in range(3)
    ]
    digests = {protocol: set() for protocol in ("random", "grouped")}
    for number, child in enumerate(children, 1):
        protocol, fold = child.data.tags["protocol"], int(child.data.params["train.folds"])
        assert "model_uri" not in child.data.tags
        digests[protocol].add(child.data.tags["split_digest"])
        found = table(project, run, f"out_of_fold_{protocol}")
        of_fold = found[found["fold"] == fold].reset_index(drop=True)
        own = table(project, child, "predictions_validation")
        pd.testing.assert_frame_equal(of_fold[own.columns], own)
        assert f"{number}/6 {child.info.run_name}: accuracy {child.data.metrics['best/accuracy']:.3f}" in output
    assert [len(found) for found in digests.values()] == [1, 1]
    assert not digests["random"] & {run.data.tags["split_digest"], *digests["grouped"]}
    assert "both protocols take the best epoch" in output  # as `train.choose` of the tests says
    assert "random/accuracy_sd" not in run.data.metrics  # one seed


def test_suspect_labels_are_the_wrong_ones_and_nothing_else_changes():
    rng = np.random.default_rng(0)
    labels, truth = ("benign", "malignant", "normal"), np.arange(300) % 3
    probabilities = 0.1 * rng.dirichlet([1, 1, 1], 300) + 0.9 * np.eye(3)[truth]
    targets = truth.copy()
    wrong = [5, 100, 211]
    probabilities[wrong] = 0.01 + 0.97 * np.eye(3)[truth[wrong]]
    targets[wrong] = (targets[wrong] + 1) % 3
    samples = pd.DataFrame({"image_id": [f"image {i}" for i in range(300)], "label": [labels[c] for c in targets]})
    kept = samples.copy()
    found = leakage.suspect_labels(samples, labels, targets, probabilities)
    assert set(found["image_id"]) == {"image 5", "image 100", "image 211"}
    assert found["rank"].tolist() == [1, 2, 3]
    assert found["p_label"].is_monotonic_increasing
    for row in found.itertuples():
        number = int(row.image_id.split()[1])
        assert (row.label, row.suggested) == (labels[targets[number]], labels[truth[number]])
        assert row.p_label == pytest.approx(probabilities[number, targets[number]])
        assert row.p_suggested == pytest.approx(probabilities[number].max())
    pd.testing.assert_frame_equal(samples, kept)


def test_the_table_of_suspects_is_that_of_grouped_folds(project: Path, compared):
    run, output = compared
    columns = ["p_benign", "p_malignant", "p_normal"]
    mean = table(project, run, "out_of_fold_grouped").groupby("image_id")[columns].mean()
    suspects = table(project, run, "suspect_labels")
    assert f"{len(suspects)} suspect labels" in output
    for row in suspects.itertuples():
        assert row.label != row.suggested
        assert row.p_label == pytest.approx(mean.loc[row.image_id, f"p_{row.label}"])
        assert row.p_suggested == pytest.approx(mean.loc[row.image_id].max())


def test_a_mistake_is_named_by_the_key_that_holds_it(project, monkeypatch):
    with pytest.raises(ParameterError, match=r"^leakage\.backbone='test_resnett' is no model of timm"):
        compare(project, monkeypatch, 1, backbone="test_resnett")
    with pytest.raises(ParameterError, match=r"^leakage\.weights=packaged: there is a package of weights for"):
        compare(project, monkeypatch, 1, backbone="test_resnet")
