"""The gate before the alias: what it asks for, and that no decision is lost when many are made at once."""

import json
import multiprocessing
import os
import random
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from tests.conftest import PROJECT, tracking_store
from ultrasound.errors import InputError
from ultrasound.params import load
from ultrasound.scoring import metrics
from ultrasound.scoring.intervals import Interval
from ultrasound.tracking import evaluation, gate, offering, registry

LABELS = ("benign", "malignant", "normal")
TAGS = {"data_digest": "d", "split_digest": "s"}
GOOD = dict.fromkeys(metrics.METRICS, 0.8) | {"operating_sensitivity": 0.95, "operating_specificity": 0.8, "ece": 0.05}
RULES = load({"register.name": "gated"}, PROJECT / "params.yaml").register_


@pytest.mark.parametrize(
    ("changes", "gain", "promoted", "said"),
    [
        ({}, None, True, "the first champion"),
        ({"operating_positive_predictive_value": float("nan")}, None, True, "the first champion"),
        ({"macro_auc": float("nan")}, None, False, "No value for macro_auc"),
        ({"operating_sensitivity": 0.7}, None, False, "Sensitivity at the operating point 0.700, at least"),
        ({"ece": 0.4}, None, False, "Expected calibration error 0.400, at most"),
        ({}, (0.02, -0.03, 0.07), True, "Better: macro-F1 on the test set 0.800, +0.020 (-0.030 to +0.070) against v"),
        ({}, (0.0, -0.05, 0.05), False, "No better"),
        ({}, (-0.02, -0.05, 0.01), False, "No better"),
        ({}, (0.01, -0.2, 0.2), False, "may be worse by more than register.margin"),
        ({"ece": 0.4}, (0.02, -0.03, 0.07), False, "Expected calibration error"),
    ],
)  # fmt: skip
def test_what_a_champion_must_have(changes, gain, promoted, said):
    verdict = gate.judge(GOOD | changes, RULES, "version 3", Interval(*gain) if gain else None)
    assert verdict.promoted == promoted
    assert said in verdict.reason
    assert verdict.reason.startswith("Champion: " if promoted else "Not champion: ")


OUTLINED = {"dice": 0.75, "lesion_dice": 0.74, "false_lesion_rate": 0.2}


@pytest.mark.parametrize(
    ("changes", "gain", "promoted", "said"),
    [
        ({}, None, True, "Dice over all images on the test set 0.750, the first champion"),
        ({"hd95": float("nan")}, None, True, "the first champion"),
        ({"lesion_dice": float("nan")}, None, False, "lacks images with a lesion, or without"),
        ({"false_lesion_rate": float("nan")}, None, False, "lacks images with a lesion, or without"),
        ({"lesion_dice": 0.59}, None, False, "Dice of the lesions 0.590, at least segment.min_dice=0.6"),
        ({"false_lesion_rate": 0.51}, None, False, "one is found 0.510, at most segment.max_false=0.5"),
        ({}, (0.02, -0.03, 0.07), True, "Better: Dice over all images on the test set 0.750, +0.020 (-0.030 to"),
        ({}, (0.0, -0.02, 0.02), False, "No better"),
        ({}, (0.01, -0.06, 0.08), False, "may be worse by more than segment.margin=0.05"),
        ({"lesion_dice": 0.5}, (0.02, -0.03, 0.07), False, "Dice of the lesions"),
        ({"false_lesion_rate": 0.6}, (0.02, -0.03, 0.07), False, "a lesion in which one is found"),
    ],
)  # fmt: skip
def test_what_a_champion_of_the_outlines_must_have(changes, gain, promoted, said):
    rules = load({}, PROJECT / "params.yaml").segment
    verdict = gate.judge_outlines(OUTLINED | changes, rules, "version 3", Interval(*gain) if gain else None)
    assert verdict.promoted == promoted
    assert said in verdict.reason
    assert verdict.reason.startswith("Champion: " if promoted else "Not champion: ")


def test_the_gain_is_paired_by_image_whatever_the_order_of_the_tables():
    champion, challenger = (answers(share, seed) for share, seed in ((0.7, 0), (0.8, 0)))
    found = gate.difference(challenger, champion.sample(frac=1, random_state=0), 500)
    assert found.value > 0.05
    assert found.high - found.low < 0.2  # unpaired it would be twice as wide
    labels = champion["label"].sample(frac=1, random_state=1).to_numpy()
    for others in (
        champion.assign(label=labels),
        champion[1:],
        champion.assign(image_id=lambda t: t["image_id"] + "b"),
    ):
        for one, other in ((challenger, others), (others, challenger)):
            with pytest.raises(ValueError, match="other images"):
                gate.difference(one, other, 100)


def answers(right, seed, count=150):
    """Predictions of which a share is right; a higher share is right on all that a lower one is right on."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, count)
    wrong = (targets + rng.integers(1, 3, count)) % 3
    predicted = np.where(rng.permutation(count) < right * count, targets, wrong)
    probabilities = np.full((count, 3), 0.1)
    probabilities[np.arange(count), predicted] = 0.8
    table = pd.DataFrame({"image_id": [f"image {n}" for n in range(count)], "label": np.array(LABELS)[targets],
                          "group": np.arange(count)})  # fmt: skip
    return table.assign(**{f"p_{label}": probabilities[:, number] for number, label in enumerate(LABELS)})


def candidate(name, table, changes=None, tags=TAGS):
    """A version with an evaluation, as `evaluate` and `register` leave them, without a network behind it."""
    targets = table["label"].map(LABELS.index).to_numpy()
    scores = metrics.score(targets, table[[f"p_{label}" for label in LABELS]].to_numpy(), LABELS)
    scores |= {"operating_sensitivity": 0.95, "operating_specificity": 0.8, "ece": 0.05} | (changes or {})
    written = {key: [value if value == value else None] * 3 for key, value in scores.items()}
    with mlflow.start_run(log_system_metrics=False) as run:
        mlflow.log_text(table.to_csv(index=False), "tables/predictions_test.csv")
        mlflow.log_dict({"scores": written, "confusion": [], "labels": list(LABELS)}, "evaluation.json")
    uri = f"models:/none-{run.info.run_id}"
    with mlflow.start_run(run.info.run_id, log_system_metrics=False):
        mlflow.set_tags({"evaluated_model": uri, **TAGS})
    client = mlflow.MlflowClient()
    return client.create_model_version(
        name, run.info.artifact_uri, run.info.run_id, tags={"model_uri": uri, "run_id": run.info.run_id, **tags}
    )


class Data:
    data_digest, split_digest = "d", "s"


def scored(version):
    found = evaluation.known(version.tags["model_uri"], Data)
    assert found is not None
    return found


def decide(version):
    return offering.decide(version, scored(version), RULES, TAGS, scored)


def several(folder, name, numbers):
    os.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    client = mlflow.MlflowClient()
    for number in numbers:
        decide(client.get_model_version(name, str(number)))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A tracking store of its own, and a registered model in it."""
    folder, before = tmp_path_factory.mktemp("gate"), Path.cwd()
    os.chdir(folder)
    with tracking_store(folder):
        yield folder
    os.chdir(before)


def named(name):
    mlflow.MlflowClient().create_registered_model(name)
    return name


def aliases(name):
    found = mlflow.MlflowClient().get_registered_model(name).aliases
    return {alias: int(version) for alias, version in found.items()}


def champion(name):
    return aliases(name)["champion"]


def test_of_fifty_promotions_at_once_the_best_eligible_version_is_champion_and_none_is_lost(store: Path, monkeypatch):
    name, rng = named("at-once"), random.Random(0)
    shares = [0.4 + 0.01 * n for n in range(50)]
    rng.shuffle(shares)
    best = max(range(50), key=lambda n: shares[n])
    ineligible = {best, (best + 1) % 50, (best + 2) % 50}  # the best of all would win, were it not for a gate
    for number, share in enumerate(shares):
        candidate(name, answers(share, 0), {"ece": 0.9} if number in ineligible else {})
    numbers = list(range(1, 51))
    rng.shuffle(numbers)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")  # no thread of its own where processes fork
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ultrasound.tracking.offering"])  # its imports take longer than the decisions
    processes = [context.Process(target=several, args=(store, name, numbers[part::6])) for part in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(1200)
        assert process.exitcode == 0
    expected = max((n for n in range(50) if n not in ineligible), key=lambda n: shares[n]) + 1
    assert champion(name) == expected
    events = registry.events(name)
    assert [event["number"] for event in events] == list(range(1, 51))
    assert sorted(int(event["version"]) for event in events) == list(range(1, 51))
    promoted = [event for event in events if event["kind"] == "promoted"]
    gains = [shares[int(event["version"]) - 1] for event in promoted]
    assert gains == sorted(gains) and promoted[-1]["version"] == str(expected)
    assert [event["former"] for event in promoted] == [None, *(event["version"] for event in promoted[:-1])]
    for version in mlflow.MlflowClient().search_model_versions(f"name = '{name}'"):
        assert version.tags["verdict"] in version.description
        assert version.tags["decided_by"] and version.tags["decided_at"]


def test_a_version_without_a_value_a_worse_one_and_one_of_other_data(store: Path):
    name = named("refused")
    first = candidate(name, answers(0.8, 0))
    assert decide(first).promoted
    older = TAGS | {"data_digest": "older"}
    for changes, share, tags, reason in (
        ({"macro_auc": float("nan")}, 0.9, TAGS, "No value for macro_auc"),
        ({}, 0.7, TAGS, "No better"),
        ({}, 0.9, older, "trained on other data or another split than today's"),
    ):
        version = candidate(name, answers(share, 0), changes, tags)
        verdict = decide(version)
        assert not verdict.promoted and reason in verdict.reason
        assert champion(name) == int(first.version)
        assert aliases(name) == {"champion": int(first.version), "challenger": int(version.version)}
    better = candidate(name, answers(0.9, 0))
    assert decide(better).promoted
    assert aliases(name) == {"champion": int(better.version), "challenger": int(version.version)}
    verdict = mlflow.MlflowClient().get_model_version(name, better.version).tags["verdict"]
    assert "was champion before" in decide(better).reason
    assert mlflow.MlflowClient().get_model_version(name, better.version).tags["verdict"] == verdict
    assert len(registry.events(name)) == 5  # nothing has changed the last time


def test_a_champion_of_other_data_is_judged_on_todays_images_and_the_verdict_says_so(store: Path):
    name = named("moved")
    old = candidate(name, answers(0.8, 0), tags={"data_digest": "older", "split_digest": "s"})
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", old.version)  # when its data was today's
    verdict = decide(candidate(name, answers(0.7, 0)))
    assert not verdict.promoted and "may have learnt from these images" in verdict.reason
    assert decide(candidate(name, answers(0.85, 0))).promoted


def test_rolling_back_goes_from_champion_to_champion_and_is_recorded(store: Path):
    name = named("back")
    with pytest.raises(InputError, match="has no champion"):
        registry.roll_back(name)
    versions = [candidate(name, answers(share, 0)) for share in (0.6, 0.7, 0.8)]
    for version in versions:
        assert decide(version).promoted
    assert [int(registry.roll_back(name).version) for _ in range(2)] == [2, 1]
    with pytest.raises(InputError, match="no version was champion before version 1"):
        registry.roll_back(name)
    assert champion(name) == 1
    assert decide(versions[1]).promoted  # it may come back
    events = registry.events(name)
    assert [(event["kind"], event["version"], event["former"]) for event in events] == [
        ("promoted", "1", None), ("promoted", "2", "1"), ("promoted", "3", "2"),
        ("rolled back", "2", "3"), ("rolled back", "1", "2"), ("promoted", "2", "1"),
    ]  # fmt: skip
    assert json.dumps(events)
    said = {number: mlflow.MlflowClient().get_model_version(name, number).tags["verdict"] for number in ("2", "3")}
    assert said["2"].startswith("Champion: ") and said["3"].startswith("Champion no more: Rolled back")


def test_a_challenger_that_is_rolled_back_to_is_no_challenger(store: Path):
    name = named("no-challenger")
    first, second = (candidate(name, answers(share, 0)) for share in (0.6, 0.7))
    assert decide(first).promoted and decide(second).promoted
    assert not decide(first).promoted
    assert aliases(name) == {"champion": 2, "challenger": 1}
    assert int(registry.roll_back(name).version) == 1
    assert aliases(name) == {"champion": 1}


class GoneError(Exception):
    pass


def broken(monkeypatch, method):
    """The store is gone when this is called."""

    def gone(*arguments):
        raise GoneError

    monkeypatch.setattr(mlflow.MlflowClient, method, gone)


@pytest.mark.parametrize("method", ["set_registered_model_alias", "log_dict", "delete_registered_model_alias"])
def test_a_promotion_that_dies_halfway_is_made_whole_by_the_next(store: Path, monkeypatch, method):
    name = named(f"halfway-{method}")
    first, second = (candidate(name, answers(share, 0), {"ece": ece}) for share, ece in ((0.6, 0.05), (0.7, 0.05)))
    refused = candidate(name, answers(0.8, 0), {"ece": 0.9})
    assert decide(first).promoted and not decide(refused).promoted
    mlflow.MlflowClient().set_registered_model_alias(name, "challenger", second.version)
    with monkeypatch.context() as patched:
        broken(patched, method)
        with pytest.raises(GoneError):
            decide(second)
    decide(second)
    assert aliases(name) == {"champion": 2}
    stood = [event["version"] for event in registry.events(name) if event["kind"] != "refused"]
    assert stood[0] == "1" and stood[-1] == "2"
    assert int(registry.roll_back(name).version) == 1


@pytest.mark.parametrize("method", ["set_registered_model_alias", "log_dict"])
def test_a_way_back_that_dies_halfway_is_gone_again_and_no_further(store: Path, monkeypatch, method):
    name = named(f"halfway-back-{method}")
    for share in (0.6, 0.7, 0.8):
        assert decide(candidate(name, answers(share, 0))).promoted
    with monkeypatch.context() as patched:
        broken(patched, method)
        with pytest.raises(GoneError):
            registry.roll_back(name)
    assert int(registry.roll_back(name).version) == 2
    assert aliases(name) == {"champion": 2}


def test_after_the_alias_was_moved_by_hand_rolling_back_returns_to_the_last_champion(store: Path):
    name = named("by-hand")
    for share in (0.6, 0.7):
        version = candidate(name, answers(share, 0))
        assert decide(version).promoted
    third = candidate(name, answers(0.5, 0))
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", third.version)
    assert int(registry.roll_back(name).version) == int(version.version)
    assert champion(name) == 2
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", third.version)
    assert registry.roll_back(name).version == version.version
    fourth = candidate(name, answers(0.8, 0))
    assert decide(fourth).promoted
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", version.version)  # back, by hand
    assert int(registry.roll_back(name).version) == 1
    found = [event["version"] for event in registry.events(name) if event["kind"] == "found"]
    assert found == ["3", "3", "2"]
