"""The way of a user who outlines lesions, through the real tools: mlflow run, the registry, both servers, the app."""

import base64
import importlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from sklearn.metrics import f1_score

from tests.app.test_page import SCREENSHOTS, showing
from tests.conftest import PROJECT, SMALL, renewed_results, run_in, ultrasound
from tests.guarded_server import free_port, guarded
from tests.stock_server import ask, images, serving
from tests.tracking.test_workflow import as_options, client, mlflow_run, runs
from ultrasound import NOTICE
from ultrasound.app import pictures, words
from ultrasound.errors import InputError
from ultrasound.images import prepared
from ultrasound.scoring import outlines
from ultrasound.scoring.intervals import Interval
from ultrasound.tracking import models

NAME = "breast-ultrasound-segmenter"
OPTIONS = ("model.name=tf_efficientnet_lite0", "model.weights=packaged", "train.folds=[0, 1]", "train.epochs=14",
           "train.learning_rate=0.002", "train.batch_size=8", "train.choose=last", "train.ema=0.9", "segment.width=32",
           "segment.offer=true")  # fmt: skip


@pytest.fixture(scope="module")
def segmented(prepared, tmp_path_factory):
    """A project of which `mlflow run . -e segment` has made a version, the run, and what the command said."""
    folder = prepared(tmp_path_factory.mktemp("segmented") / "project")
    said = mlflow_run(folder, "segment", *OPTIONS)
    (run,) = runs(folder, "segment")
    return folder, run, said.stdout + said.stderr


def table(folder, run, name):
    return pd.read_csv(client(folder).download_artifacts(run.info.run_id, f"tables/{name}.csv"))


def test_lesions_of_phantoms_are_found_and_normals_left_alone(segmented):
    folder, run, said = segmented
    metrics = run.data.metrics
    assert metrics["out_of_fold/lesion_dice"] >= 0.85
    assert metrics["out_of_fold/false_lesion_rate"] <= 0.2
    rows = table(folder, run, "outlines_out_of_fold")
    assert metrics["out_of_fold/lesion_dice"] == pytest.approx(rows["dice"][rows["lesion"] > 0].mean())
    assert metrics["out_of_fold/dice"] == metrics["best/dice"] == pytest.approx(rows["dice"].mean())
    assert metrics["out_of_fold/lesion_dice_low"] < metrics["out_of_fold/lesion_dice"]
    assert metrics["out_of_fold/lesion_dice"] < metrics["out_of_fold/lesion_dice_high"]
    printed = dict(re.findall(r"^  (\w+) +([\d.]+)", said.split("locked test set")[0], re.MULTILINE))
    assert set(printed) == set(outlines.METRICS)
    assert float(printed["lesion_dice"]) == pytest.approx(metrics["out_of_fold/lesion_dice"], abs=0.0006)


def test_every_development_image_of_the_folds_is_outlined_once_by_a_rule_of_the_other_fold(segmented):
    folder, run, _ = segmented
    data = prepared_data(folder)
    rows = table(folder, run, "outlines_out_of_fold")
    expected = data.samples[(data.samples["split"] == "development") & data.samples["fold"].isin([0, 1])]
    assert rows["image_id"].tolist() == expected["image_id"].tolist()
    assert rows["fold"].tolist() == expected["fold"].tolist()
    lesion = data.masks[expected.index.to_numpy()].any(axis=(1, 2))
    assert (rows["lesion"] > 0).tolist() == lesion.tolist()


def prepared_data(folder):
    return prepared.read(folder / "build/prepared")


def test_the_run_holds_what_a_reader_needs(segmented):
    folder, run, _ = segmented
    there = {file.path for where in ("figures", "tables", "") for file in client(folder).list_artifacts(
        run.info.run_id, where)}  # fmt: skip
    assert {"figures/fold_curves.png", "figures/outlines_out_of_fold.png", "figures/augmented_examples.png",
            "tables/outlines_out_of_fold.csv", "tables/slices_out_of_fold.csv", "rule.json"} <= there  # fmt: skip
    slices = table(folder, run, "slices_out_of_fold")
    assert {"class", "lesion", "calipers or text"} & set(slices["by"]) >= {"class", "lesion"}
    of_class = slices[slices["by"] == "class"].set_index("slice")
    assert np.isnan(of_class["lesion_dice"]["normal"]) and of_class["lesion_dice"]["benign"] > 0.5
    children = client(folder).search_runs(["0"], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert {child.info.run_name for child in children} == {"fold-0", "fold-1", "refit"}
    assert {child.info.status for child in children} == {"FINISHED"}
    fold = next(child for child in children if child.info.run_name == "fold-0")
    history = client(folder).get_metric_history(fold.info.run_id, "validation/dice")
    assert [metric.step for metric in history] == list(range(1, 15))
    with np.load(client(folder).download_artifacts(run.info.run_id, "masks/out_of_fold.npz")) as saved:
        rows = table(folder, run, "outlines_out_of_fold")
        assert saved["image_id"].tolist() == rows["image_id"].tolist()
        np.testing.assert_allclose(saved["masks"].mean(axis=(1, 2)), rows["found_area"])
    rule = json.loads(Path(client(folder).download_artifacts(run.info.run_id, "rule.json")).read_text())
    assert rule["chosen_on"] == len(rows)
    of_folds = json.loads(Path(client(folder).download_artifacts(run.info.run_id, "rules_of_folds.json")).read_text())
    assert {fold: rule["chosen_on"] for fold, rule in of_folds.items()} == {
        str(fold): int((rows["fold"] != fold).sum()) for fold in (0, 1)
    }


def test_the_document_says_what_the_run_says(segmented):
    folder, run, _ = segmented
    section = renewed_results(folder, "segment", run.info.run_id)
    value, low, high = (run.data.metrics[f"out_of_fold/lesion_dice{end}"] for end in ("", "_low", "_high"))
    assert f"| lesion_dice | {value:.3f} ({low:.3f} to {high:.3f}) |" in section
    assert "| class: normal (few) |" in section and "`tf_efficientnet_lite0` (packaged weights), width 32" in section
    assert run.data.tags["data_digest"] in section
    (evaluation,) = client(folder).search_runs(["0"], "tags.evaluated_model LIKE '%'")
    section = renewed_results(folder, "segment-test", evaluation.info.run_id)
    value, low, high = (evaluation.data.metrics[f"test/lesion_dice{end}"] for end in ("", "_low", "_high"))
    assert f"| lesion_dice | {value:.3f} ({low:.3f} to {high:.3f}) |" in section
    assert "| class: normal (few) |" in section and "train.refit True" in section
    assert run.data.tags["data_digest"] in section
    said = run_in(folder, sys.executable, "scripts/results.py", "evaluation", evaluation.info.run_id, expect=1).stderr
    assert "is no classifier of" in said


def test_it_is_scored_on_the_locked_test_set_registered_and_champion(segmented):
    folder, run, said = segmented
    version = client(folder).get_model_version_by_alias(NAME, "champion")
    assert version.tags["run_id"] == run.info.run_id and version.tags["verdict"].startswith("Champion: Dice")
    assert f"{NAME} version 1 from {run.info.run_name}" in said and "Champion: Dice over all images" in said
    (evaluation,) = client(folder).search_runs(["0"], "tags.evaluated_model LIKE '%'")
    data, rows = prepared_data(folder), table(folder, evaluation, "outlines_test")
    assert rows["image_id"].tolist() == data.samples["image_id"][data.samples["split"] == "test"].tolist()
    assert evaluation.data.metrics["test/dice"] == pytest.approx(rows["dice"].mean())
    assert float(version.tags["test_dice"]) == pytest.approx(rows["dice"].mean(), abs=1e-4)
    model = models.load_segmenter(artifacts(folder, version))
    chosen = data.rows("test")
    found = outlines.table(np.asarray(data.masks[chosen]), model.masks(np.ascontiguousarray(data.images[chosen])))
    np.testing.assert_allclose(rows["dice"], found["dice"])


def test_the_evaluation_is_a_page_and_the_version_has_a_card(segmented):
    folder, run, _ = segmented
    (evaluation, *_) = client(folder).search_runs(["0"], "tags.evaluated_model LIKE '%'")
    page, card = (
        Path(client(folder).download_artifacts(evaluation.info.run_id, name)).read_text()
        for name in ("report.html", "model_card.md")
    )
    metrics = evaluation.data.metrics
    for name, metric in outlines.METRICS.items():
        score = Interval(*(metrics.get(f"test/{name}{end}", np.nan) for end in ("", "_low", "_high")))
        words = name.replace("_", " ")
        assert f'<th scope="row">{words}</th><td>{score}</td>' in page
        assert f"| {words} | {score} | {metric.definition} |" in card
    rule = json.loads(Path(client(folder).download_artifacts(run.info.run_id, "rule.json")).read_text())
    for text in (page, card):
        assert NOTICE in text and f"{rule['edge'] / 255:.2f}" in text and f"{rule['chosen_on']} development" in text
        assert run.info.run_id in text and "class: normal" in text
    assert page.count('src="data:image/png;base64,') == 2  # curves of the folds, and the outlines
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "<script" not in page
    for heading in ("Intended use", "Training data", "Evaluation data", "Quantitative analyses"):
        assert f"## {heading}\n" in card
    assert f"Model card: {NAME}" in card and "Synthetic phantoms" in card
    version = client(folder).get_model_version_by_alias(NAME, "champion")
    assert Path(artifacts(folder, version), "model_card.md").read_text() == card


def artifacts(folder, version):
    """The folder of a version's files."""
    return mlflow.artifacts.download_artifacts(client(folder).get_model_version_download_uri(NAME, version.version))


def test_the_classifiers_commands_do_not_take_a_segmenter_for_one(segmented):
    folder, *_ = segmented
    said = ultrasound(folder, "evaluate", "--evaluate.run=latest", expect=1).stderr
    assert "no finished run with a model of today's data and split" in said
    said = ultrasound(folder, "register", "--register.run=best", expect=1).stderr
    assert "no finished run with a model of today's data and split" in said
    said = ultrasound(folder, "register", "--register.run=segmenter", f"--register.name={NAME}", expect=2).stderr
    assert f"segment.name={NAME} is register.name, too" in said


def test_a_segmenter_is_evaluated_and_registered_by_its_run_and_not_twice(segmented):
    folder, run, _ = segmented
    said = ultrasound(folder, "evaluate", "--evaluate.run=segmenter", "--evaluate.resamples=300").stdout
    assert run.info.run_id in said and "lesion_dice" in said
    (newest, *_) = client(folder).search_runs(["0"], "tags.verb = 'evaluate'")
    assert newest.data.params == {"evaluate.run": "segmenter", "evaluate.resamples": "300"}
    content = client(folder).download_artifacts(newest.info.run_id, "evaluation.json")
    assert json.loads(Path(content).read_text())["resamples"] == 300
    scored = "tags.evaluated_model LIKE '%'"
    before = len(client(folder).search_runs(["0"], scored))
    said = ultrasound(folder, "register", f"--register.run={run.info.run_id}").stdout
    assert f"{NAME} version 1 from" in said and "It was champion before." in said
    (registered, *_) = client(folder).search_runs(["0"], "tags.verb = 'register'")
    assert registered.data.params["evaluate.resamples"] == str(SMALL["evaluate"]["resamples"])
    (evaluation, *others) = client(folder).search_runs(["0"], scored)  # the newest first
    assert len(others) + 1 == before
    for each in (evaluation, *others):  # as of a version of this project that wrote no card
        (folder / f"mlruns/0/{each.info.run_id}/artifacts/model_card.md").unlink()
    ultrasound(folder, "register", f"--register.run={run.info.run_id}")
    assert len(client(folder).search_runs(["0"], scored)) == before + 1


def test_folds_that_leave_no_single_model_are_refused_before_anything_is_trained(segmented):
    folder, *_ = segmented
    before = len(runs(folder, "segment"))
    said = ultrasound(folder, "segment", "--train.folds=all", "--train.refit=false", "--segment.offer=true",
                      expect=2).stderr  # fmt: skip
    assert "segment.offer" in said and "train.ensemble" in said and len(runs(folder, "segment")) == before
    said = ultrasound(folder, "segment", "--train.layer_decay=0.5", expect=2).stderr
    assert "train.layer_decay: a U-Net's encoder tells no layers apart" in said
    said = ultrasound(folder, "segment", "--segment.name=breast-ultrasound", "--segment.offer=true", expect=2).stderr
    assert "segment.name=breast-ultrasound is register.name, too" in said
    assert len(runs(folder, "segment")) == before


def masks_of(answers):
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]))).convert("L")) for answer in answers]


def test_both_servers_return_masks_as_large_as_the_images_and_equal_to_those_offline(segmented):
    folder, *_ = segmented
    data = prepared_data(folder)
    rows = data.rows("test")
    names = data.samples["image_id"].to_numpy()[rows]
    files = [(folder / f"build/phantoms/{name}.png").read_bytes() for name in names]
    version = client(folder).get_model_version_by_alias(NAME, "champion")
    offline = models.load_segmenter(artifacts(folder, version)).masks(np.ascontiguousarray(data.images[rows]))
    with serving(folder, f"models:/{NAME}@champion") as url:
        answers = []
        for start in range(0, len(files), 7):
            status, answer = ask(url, images(*files[start : start + 7]))
            assert status == 200
            answers += answer["predictions"]
        status, refused = ask(url, images(b"no image"))
        assert status == 400 and refused["message"] == "Image 1 is not a PNG, JPEG or DICOM file."
    for file, answer, mask, expected in zip(files, answers, masks_of(answers), offline, strict=True):
        picture = Image.open(io.BytesIO(file))
        assert mask.shape == (picture.height, picture.width) and set(np.unique(mask)) <= {0, 255}
        assert answer["lesions"] == 0 or expected.any()
        inside = data.preparation.back(expected.astype(np.uint8) * 255, place(data, picture)) > 127
        assert np.mean((mask > 0) != inside) < 0.002  # a level may be rounded otherwise
        assert answer["lesion_area_share"] == pytest.approx((mask > 0).mean(), abs=0.01)
        for name in ("taller_than_wide", "circularity"):
            assert (answer[name] is None) == (not (mask > 0).any())
        assert answer["model_version"] == f"{NAME}/1" and answer["notice"] == NOTICE
    with guarded(folder, f"--register.name={NAME}") as server:
        body = json.dumps(images(files[0], files[-1])).encode()
        said = server.ask(body)
        assert said.status_code == 200 and said.json()["predictions"] == [answers[0], answers[-1]]
        assert server.ask(b'{"inputs": ["QQ=="]}').status_code == 400
        columns = server.get("/openapi.json").json()["components"]["schemas"]["Answer"]["properties"]["predictions"]
        assert columns["items"]["properties"]["mask"] == {"type": "string"}
        assert "circularity" not in columns["items"]["required"]


def place(data, picture):
    return data.preparation.placed(picture)[1]


@pytest.fixture(scope="module")
def with_classifier(segmented):
    """The same project with a classifier as champion beside the segmenter."""
    folder, *_ = segmented
    ultrasound(folder, "train", "--model.name=tf_efficientnet_lite0", "--model.weights=packaged", "--train.epochs=6",
               "--calibrate.coverage=0.6")  # fmt: skip
    ultrasound(folder, "register", "--register.run=latest", "--evaluate.explain=false")
    return folder


def test_batch_predictions_have_columns_of_the_shape_here_and_from_servers(with_classifier):
    folder = with_classifier
    source = folder / "build/phantoms"
    ultrasound(folder, "predict", str(source / "benign"), "--out", "here.csv", "--outlines")
    here = pd.read_csv(folder / "here.csv")
    with guarded(folder) as classifier, guarded(folder, f"--register.name={NAME}", name="segmenter") as segmenter:
        ultrasound(folder, "predict", str(source / "benign"), "--out", "there.csv", "--url", classifier.url,
                   "--outlines-url", segmenter.url)  # fmt: skip
        said = ultrasound(folder, "predict", str(source / "benign"), "--out", "no.csv", "--url", classifier.url,
                          "--outlines-url", classifier.url, expect=1).stderr  # fmt: skip
        assert "does not answer as a server of this model does" in said
    there = pd.read_csv(folder / "there.csv")
    pd.testing.assert_frame_equal(here, there, atol=1e-6)
    assert set(here["segmenter_version"]) == {f"{NAME}/1"}
    found = here[here["lesions"] > 0]
    assert len(found) > 0.8 * len(here)
    assert found["lesion_area_share"].between(0, 0.6).all() and found["circularity"].between(0, 1).all()
    assert found["taller_than_wide"].median() < 1  # phantoms of benign lesions are wider than tall
    ultrasound(folder, "predict", str(source / "malignant"), "--out", "malignant.parquet", "--outlines")
    malignant = pd.read_parquet(folder / "malignant.parquet")
    assert malignant["taller_than_wide"].median() > found["taller_than_wide"].median()
    (folder / "broken").mkdir()
    (folder / "broken/a.png").write_bytes(b"no image")
    said = ultrasound(folder, "predict", "broken", "--out", "broken.csv", "--outlines", expect=1).stderr
    assert "no image of broken could be answered" in said
    ultrasound(folder, "predict", str(source / "normal"), "--out", "plain.csv")
    assert "lesions" not in pd.read_csv(folder / "plain.csv")


@pytest.fixture
def tab(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 1400}, reduced_motion="reduce")
    context.set_default_timeout(120_000)
    yield context.new_page()
    context.close()


def test_the_page_draws_the_outline_and_tells_its_measures(with_classifier, tab):
    with showing(with_classifier, "--with-server", f"--serve.port={free_port()}") as page:
        tab.goto(page.url)
        tab.get_by_text(words.PHANTOM, exact=True).click()
        tab.get_by_role("heading", name=words.OUTLINE).wait_for()
        said = tab.get_by_text(f"Outlined by {NAME}/1").inner_text()
        assert re.search(r": [\d.]+ % of the scan; it is [\d.]+ times as tall as wide, its circularity is", said)
        picture = tab.get_by_role("img", name="with the outline of what the segmenter takes for a lesion")
        picture.wait_for()
        content = tab.request.get(f"{page.url}{picture.get_attribute('src').removeprefix(page.url)}").body()
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).reshape(-1, 3)
        assert (pixels == pictures.OUTLINE).all(axis=1).sum() > 100
        with tab.expect_download() as download:
            tab.get_by_role("button", name=words.SHEET).click()
        sheet = Path(download.value.path()).read_text()
        assert f"Outlined by {NAME}/1" in sheet and words.OUTLINE in sheet
        paper = tab.context.new_page()
        paper.set_content(sheet)
        assert len(re.findall(rb"/Type\s*/Page\b", paper.pdf(prefer_css_page_size=True))) == 1
        if SCREENSHOTS:
            tab.screenshot(path=Path(SCREENSHOTS) / "app-outline.png", full_page=True)


def test_without_the_segmenters_server_the_class_is_answered_all_the_same(with_classifier, tab):
    nobody = f"--app.outlines=http://127.0.0.1:{free_port()}"
    with guarded(with_classifier) as server, showing(with_classifier, f"--app.url={server.url}", nobody) as page:
        tab.goto(page.url)
        tab.get_by_text(words.PHANTOM, exact=True).click()
        tab.get_by_text("The lesion is not outlined").wait_for()
        tab.get_by_text("breast-ultrasound/1").first.wait_for()
        assert not tab.get_by_role("heading", name=words.OUTLINE).count()


SMALL_ONE = ("model.name=test_resnet", "model.weights=none", "segment.width=16", "segment.min_dice=0",
             "segment.max_false=1")  # fmt: skip


def test_the_recipe_goes_before_the_file_and_the_command_line_before_the_recipe(segmented):
    folder, *_ = segmented
    recipe = "segment.recipe={train.head_rate: 7, train.batch_size: 4, augment.scale: 0.3}"
    ultrasound(folder, "segment", *as_options((*SMALL_ONE, recipe, "train.batch_size=8", "train.epochs=1",
                                               "train.folds=0", "train.classification_weight=0.5")))  # fmt: skip
    run = runs(folder, "segment")[-1]
    shown = [run.data.params[key] for key in ("train.head_rate", "train.batch_size", "augment.scale")]
    assert shown == ["7.0", "8", "0.3"]
    unused = {"model.dropout", "train.label_smoothing"}
    assert not unused & run.data.params.keys()
    for child in client(folder).search_runs(["0"], f"tags.`mlflow.parentRunId` = '{segmented[1].info.run_id}'"):
        assert child.data.params["segment.width"] == "32" and not unused & child.data.params.keys()
    history = client(folder).get_metric_history(run.info.run_id, "validation/macro_f1")
    assert len(history) == 1 and 0 <= history[0].value <= 1  # the class was learnt beside
    said = ultrasound(folder, "segment", "--segment.recipe={split.seed: 1}", expect=2).stderr
    assert "segment.recipe" in said and "split.seed" in said
    said = ultrasound(folder, "train", "--segment.recipe={train.epochz: 3}", expect=2).stderr
    assert "segment.recipe: there is no parameter train.epochz" in said
    said = ultrasound(folder, "segment", "--segment.recipe={train.label_smoothing: 0.1}", expect=2).stderr
    assert "segment.recipe: train.label_smoothing means nothing" in said
    for verb, option in (("segment", "train.label_smoothing=0.1"), ("train", "train.empty_weight=1"),
                         ("tune", "segment.width=64"), ("compare", "train.classification_weight=1")):  # fmt: skip
        said = ultrasound(folder, verb, f"--{option}", expect=2).stderr
        assert f"{option.partition('=')[0]} means nothing to {verb} here: leave it out" in said


def test_one_command_says_whether_outlines_and_classes_help_each_other(segmented, monkeypatch):
    folder, large, _ = segmented
    for weight in (0, 0.5):
        ultrasound(folder, "segment", *as_options((*SMALL_ONE, "train.epochs=9", "train.folds=[0, 1]",
                                                   "train.refit=false", f"train.classification_weight={weight}",
                                                   "train.batch_size=8", "train.learning_rate=0.003")))  # fmt: skip
    single, both = runs(folder, "segment")[-2:]
    assert single.data.metrics["out_of_fold/found_share"] > 0  # there are regions to be cut
    shutil.copytree(PROJECT / "scripts", folder / "scripts", dirs_exist_ok=True)
    document = folder / "docs/results.md"
    document.parent.mkdir(exist_ok=True)
    document.write_text("# Results\n\n<!-- numbers: tasks -->\nof last time\n<!-- end -->\n")
    command = [sys.executable, "scripts/tasks.py", single.info.run_id, "--both", both.info.run_id]
    assert "section tasks renewed" in run_in(folder, *command, new=True).stdout
    text = document.read_text()
    written = {cells[1].strip(): [cell.split(" (")[0].strip() for cell in cells[2:-1]]
               for line in text.splitlines() if line.startswith("|") for cells in [line.split("|")]}  # fmt: skip
    names = ("lesion_dice", "dice", "false_lesion_rate")
    scores = [[run.data.metrics[f"out_of_fold/{name}"] for name in names] for run in (single, both)]
    assert written["outlines alone"] == [f"{score:.3f}" for score in scores[0]]
    assert written["outlines and classes"] == [f"{score:.3f}" for score in scores[1]]
    less = np.subtract(scores[1], scores[0])
    np.testing.assert_allclose([float(cell) for cell in written["difference"]], less, atol=6e-4)
    (experiment,) = client(folder).search_experiments(filter_string="name = 'tasks'")
    made = client(folder).search_runs([experiment.experiment_id], "tags.verb = 'tasks'")
    assert {run.data.tags["sees"] for run in made} == {"whole images", "found regions"} and len(made) == 2
    for run in made:
        answers = table(folder, run, "predictions_out_of_fold")
        value = f1_score(answers["label"], answers["predicted"], average="macro")
        assert written[run.data.tags["sees"]][0] == f"{value:.3f}"
    heads = [child.data.metrics["best/macro_f1"] for child in client(folder).search_runs(
        ["0"], f"tags.`mlflow.parentRunId` = '{both.info.run_id}' AND tags.fold LIKE '%'")]  # fmt: skip
    assert written["second head of both tasks"][3].startswith(f"{np.mean(heads):.3f} ± ") and len(heads) == 2
    assert len(written["mean of the two"][0]) == 5
    run_in(folder, *command)  # nothing is trained again, and the same is written
    assert len(client(folder).search_runs([experiment.experiment_id])) == 2 + 2 * 2
    assert document.read_text() == text
    refused = run_in(folder, sys.executable, "scripts/tasks.py", made[0].info.run_id, expect=1).stderr
    assert "is no finished run of segment" in refused
    tasks = script(monkeypatch)
    tasks.require_fit(single, both)
    for first, second, reason in (
        (both, single, "has learnt the class, too"), (single, single, "has not learnt the class"),
        (large, both, "the two runs differ in model.name: tf_efficientnet_lite0 and test_resnet"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=reason):
            tasks.require_fit(first, second)


def script(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "scripts")
    return importlib.import_module("tasks")


def test_a_region_is_cut_with_what_lies_around_it(monkeypatch):
    tasks = script(monkeypatch)
    mask = np.zeros((100, 200), bool)
    mask[40:60, 100:150] = True
    left, top, right, bottom = tasks.box_around(mask)
    assert (left, right) == (85, 165)  # 50 and 30 % of it on both sides
    assert (top, bottom) == (10, 90)
    mask = np.zeros((100, 200), bool)
    mask[0, 0] = True
    assert tasks.box_around(mask) == (0, 0, 13, 13)  # 25 on a side, as far as the image goes
    mask[:] = True
    assert tasks.box_around(mask) == (0, 0, 200, 100)


def children(folder, parent, verb):
    return [run for run in runs(folder, verb) if run.data.tags["mlflow.parentRunId"] == parent.info.run_id]


def test_tune_searches_for_outlines_where_dice_is_compared(segmented):
    folder, *_ = segmented
    space = "tune.space={segment.width: {choices: [16, 32]}, train.learning_rate: {low: 0.001, high: 0.01, log: true}}"
    said = mlflow_run(
        folder, "tune", *SMALL_ONE, space, "tune.metric=dice", "tune.study=outlines", "tune.trials=4",
        "tune.prune_epochs=none", "tune.prune_folds=0",
        "tune.folds=[0, 1]", "tune.repeats=1", "train.epochs=2", "segment.name=tuned-outlines",
    ).stdout  # fmt: skip
    (parent,) = [run for run in runs(folder, "tune") if run.data.params["tune.study"] == "outlines"]
    trials = {run.info.run_name: run for run in children(folder, parent, "trial")}
    assert len(trials) == 4
    best = trials[parent.data.tags["best_trial"]]
    assert parent.data.metrics["best/dice"] == best.data.metrics["out_of_fold/dice"]
    rows = table(folder, best, "outlines_out_of_fold")
    assert best.data.metrics["out_of_fold/dice"] == pytest.approx(rows["dice"].mean())
    assert best.data.metrics["out_of_fold/dice"] == max(
        run.data.metrics.get("out_of_fold/dice", 0) for run in trials.values()
    )
    assert parent.data.params["best.segment.width"] == best.data.params["segment.width"]
    (again,) = children(folder, parent, "best")
    assert re.search(rf"best with seed 1: dice out of fold {again.data.metrics['out_of_fold/dice']:.3f} \(", said)
    file = client(folder).download_artifacts(parent.info.run_id, "best_params.yaml")
    fragment = yaml.safe_load(Path(file).read_text())
    width, rate = (float(best.data.params[key]) for key in ("segment.width", "train.learning_rate"))
    assert fragment == {"segment": {"width": width, "recipe": {"train.learning_rate": pytest.approx(rate)}}}
    section = renewed_results(folder, "search", parent.info.run_id)
    assert "| dice out of fold |" in section
    assert f"| best parameters | {again.data.metrics['out_of_fold/dice']:.3f} |" in section
    version = client(folder).get_model_version_by_alias("tuned-outlines", "champion")
    assert version.tags["run_id"] == again.info.run_id and "tuned-outlines version 1: Champion" in said
    if best.info.run_name != "trial-000":  # the first are the values of params.yaml
        (defaults,) = children(folder, parent, "defaults")
        gained = again.data.metrics["out_of_fold/lesion_dice"] - defaults.data.metrics["out_of_fold/lesion_dice"]
        assert parent.data.metrics["gain/lesion_dice"] == pytest.approx(gained)


def test_a_search_for_outlines_may_know_one_fold_only(segmented):
    folder, *_ = segmented
    options = (*SMALL_ONE, "tune.space={segment.width: {choices: [16, 32]}}", "tune.metric=lesion_dice",
               "tune.trials=1", "tune.study=one-fold", "tune.folds=0", "tune.repeats=1", "tune.offer=false",
               "train.epochs=1")  # fmt: skip
    said = ultrasound(folder, "tune", *as_options(options)).stdout
    assert "best: trial 0, lesion_dice" in said and "best with seed 1: dice out of fold" in said


def test_a_better_one_must_show_it_on_the_test_set(segmented):
    folder, *_ = segmented
    ultrasound(folder, "segment", *as_options((*SMALL_ONE, "train.folds=[0, 1]", "train.ensemble=true",
                                               "train.epochs=1", "segment.offer=true")))  # fmt: skip
    version = client(folder).get_model_version_by_alias(NAME, "challenger")
    assert int(version.version) == 2 and "No better: Dice over all images on the test set" in version.tags["verdict"]
    assert client(folder).get_model_version_by_alias(NAME, "champion").tags["verdict"].startswith("Champion")
    assert len(models.load_segmenter(artifacts(folder, version)).network.members) == 2  # the networks of the folds
    card = client(folder).download_artifacts(version.tags["evaluation_run"], "model_card.md")
    assert "on the answers of single networks, whose mean is less extreme" in Path(card).read_text()
