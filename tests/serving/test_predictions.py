"""Predictions of a folder: the real command, interrupted, killed and continued, here and through the real server."""

import ast
import base64
import contextlib
import http.server
import io
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from tests.conftest import PROJECT, run_in, start_in, ultrasound
from tests.dicoms import dicom
from tests.guarded_server import guarded
from ultrasound.commands import predict as command
from ultrasound.errors import InputError, ParameterError
from ultrasound.images.sources.phantom import phantom
from ultrasound.inference import predictor, scan
from ultrasound.params import load
from ultrasound.serving import finding, predictions, sources
from ultrasound.serving.journal import Journal

TOKEN = "a-token-of-the-tests"
NUMBERS = ["p_benign", "p_malignant", "p_normal"]


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """16 good images and all that may lie beside them."""
    folder = tmp_path_factory.mktemp("scans") / "scans"
    (folder / "deeper").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for number in range(1, 13):
        image, mask = phantom(("benign", "malignant", "normal")[number % 3], number, 0)
        image.save(folder / f"benign ({number:02}).png")
        mask.save(folder / f"benign ({number:02})_mask.png")
    mask.save(folder / "benign (01)_mask_1.png")
    grey = np.asarray(image.convert("L"))
    image.convert("L").save(folder / "deeper/grey.PNG")
    image.save(folder / "deeper/photo.JpEg", quality=90)
    (folder / "deeper/IM0001").write_bytes(dicom(grey))
    (folder / "deeper/scan.dcm").write_bytes(dicom(grey))
    (folder / "notes.txt").write_text("no image")
    (folder / "README").write_text("no image")
    image.save(folder / ".hidden/thumbnail.png")
    return folder


@pytest.fixture
def messy(scans, tmp_path):
    """The same, and files that no model can answer to."""
    folder = Path(shutil.copytree(scans, tmp_path / "messy"))
    (folder / "cut.png").write_bytes((folder / "benign (01).png").read_bytes()[:3000])
    (folder / "empty.png").touch()
    (folder / "large.png").write_bytes((folder / "benign (01).png").read_bytes() + bytes(scan.MAX_BYTES))
    (folder / "text.jpg").write_text("no image")
    return folder


@pytest.fixture
def here(served, monkeypatch):
    """The project with the registered versions is where the command runs."""
    monkeypatch.chdir(served)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{served}/mlflow.db")
    monkeypatch.delenv("ULTRASOUND_TOKEN", raising=False)
    return served


@pytest.fixture(scope="module")
def url(served):
    """The address of the real server of the champion, which asks for a token."""
    with guarded(served, name="predictions", ULTRASOUND_TOKEN=TOKEN) as server:
        yield server.url


def run(folder, out, url=None, **overrides):
    command.run(load({key.replace("__", "."): value for key, value in overrides.items()}), str(folder), str(out), url)
    return pd.read_csv(out, float_precision="round_trip") if out.suffix == ".csv" else pd.read_parquet(out)


class Stopping:
    """The real source, stopped by Ctrl-C after some batches."""

    def __init__(self, source, batches):
        self.source, self.left = source, batches

    def answers(self, images):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt("stopped by Ctrl-C")
        return self.source.answers(images)


def interrupted(folder, out, batches):
    found = finding.find(folder)
    source = Stopping(sources.local("breast-ultrasound", "champion"), 1 + batches)  # the first is the test picture
    with pytest.raises(KeyboardInterrupt) as stopped, Journal(out) as journal:
        predictions.predict(found, source, journal)
    return str(stopped.value)


def test_what_is_written_is_what_the_registered_model_says(here, messy, tmp_path, capsys):
    table = run(messy, tmp_path / "new/table.csv")
    said = capsys.readouterr().out
    assert "20 images: 16 answered" in said
    assert "; 4 bad\nbad: cut.png, empty.png, large.png, text.jpg; column error says why\n" in said
    assert "skipped: 1 hidden, 13 mask, 2 other\n" in said
    assert said.endswith("table.csv: breast-ultrasound/1\n")
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new/table.csv"]
    assert table["file"].tolist() == sorted(
        [f"benign ({number:02}).png" for number in range(1, 13)]
        + [f"deeper/{name}" for name in ("IM0001", "grey.PNG", "photo.JpEg", "scan.dcm")]
        + ["cut.png", "empty.png", "large.png", "text.jpg"]
    )
    assert list(table.columns) == [
        "file", "label", *NUMBERS, "malignant_flag", "prediction_set", "abstain", "abstain_reason", "model_version",
        "data_version", "notice", "error",
    ]  # fmt: skip
    good = table[table["error"].isna()].set_index("file")
    bad = table[table["error"].notna()].set_index("file")
    assert bad.drop(columns="error").isna().all(axis=None)
    assert bad["error"]["empty.png"] == "empty.png is empty"
    assert bad["error"]["large.png"] == "large.png is larger than 8 MB"
    assert bad["error"]["text.jpg"] == "text.jpg is not a PNG, JPEG or DICOM file"
    assert bad["error"]["cut.png"].startswith("cut.png is damaged")
    served = mlflow.pyfunc.load_model("models:/breast-ultrasound@champion")
    contents = [base64.b64encode((messy / name).read_bytes()).decode() for name in good.index]
    answers = pd.DataFrame(served.predict(pd.DataFrame({"image": contents})))
    np.testing.assert_allclose(good[NUMBERS].to_numpy(), answers[NUMBERS].to_numpy(), atol=1e-6)
    assert good["label"].tolist() == answers["label"].tolist()
    assert good["prediction_set"].fillna("").tolist() == [", ".join(chosen) for chosen in answers["prediction_set"]]
    assert good["abstain_reason"].fillna("").tolist() == answers["abstain_reason"].tolist()
    assert (
        good[["malignant_flag", "abstain"]]
        .astype(bool)
        .equals(answers[["malignant_flag", "abstain"]].set_index(good.index))
    )
    for name in ("deeper/IM0001", "deeper/scan.dcm"):
        assert (good.loc[name, NUMBERS] == good.loc["deeper/grey.PNG", NUMBERS]).all()


def test_parquet_holds_the_same_as_csv(here, messy, tmp_path):
    csv, parquet = (run(messy, tmp_path / f"table.{suffix}") for suffix in ("csv", "parquet"))
    assert parquet["abstain"].dtype == "boolean"
    assert (parquet["error"] == "").sum() == 16
    parquet.to_csv(tmp_path / "again.csv", index=False)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "table.csv").read_bytes()
    assert len(csv) == 20


def test_a_single_file_is_answered_whatever_its_name(here, scans, tmp_path):
    table = run(scans / "benign (01)_mask.png", tmp_path / "one.csv")
    assert table["file"].tolist() == ["benign (01)_mask.png"]
    assert table["error"].isna().all()


def test_where_nothing_can_be_answered_the_table_says_why(here, tmp_path):
    (tmp_path / "scans").mkdir()
    with pytest.raises(InputError, match="holds no PNG, JPEG or DICOM file"):
        run(tmp_path / "scans", tmp_path / "table.csv")
    (tmp_path / "scans/text.png").write_text("no image")
    with pytest.raises(InputError, match=r"no image of .* could be answered"):
        run(tmp_path / "scans", tmp_path / "table.csv")
    assert pd.read_csv(tmp_path / "table.csv")["error"].tolist() == ["text.png is not a PNG, JPEG or DICOM file"]


@pytest.mark.parametrize(
    ("out", "url", "kind", "said"),
    [
        (None, None, ParameterError, "--out is missing"),
        ("table.xlsx", None, ParameterError, "ends in .csv or .parquet"),
        ("t.csv", "127.0.0.1:5001", ParameterError, "no address of a server"),
        ("t.csv", "http://name:word@host", ParameterError, "no address of a server"),
        ("t.csv", "http://127.0.0.1:1", InputError, "python -m ultrasound serve"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(here, scans, tmp_path, out, url, kind, said):
    with pytest.raises(kind, match=said):
        command.run(load(), str(scans), str(tmp_path / out) if out else None, url)
    assert not list(tmp_path.iterdir())


def test_what_was_answered_is_not_asked_again_but_what_has_changed_is(here, scans, tmp_path, capsys, monkeypatch):
    many = Path(shutil.copytree(scans, tmp_path / "many"))
    for number in range(13, 40):
        shutil.copy(many / f"benign ({number % 12 + 1:02}).png", many / f"benign ({number}).png")
    (many / "cut.png").write_bytes((many / "benign (01).png").read_bytes()[:3000])
    out = tmp_path / "table.csv"
    said = interrupted(many, out, 2)
    assert (
        said
        == f"stopped by Ctrl-C; 32 of 44 images are answered in {out}.partial, from where the same command continues"
    )
    assert not out.exists()
    with (tmp_path / "table.csv.partial").open("ab") as journal:
        journal.write(b'{"file": "benign (39).png", "stamp": [1, 2], "answ')  # torn by a kill
    other = phantom("malignant", 77, 0)[0]
    other.save(many / "benign (03).png")
    asked = []
    answers = sources.Local.answers
    monkeypatch.setattr(sources.Local, "answers", lambda self, images: asked.extend(images) or answers(self, images))
    table = run(many, out)
    assert "continuing: 31 of 44 images" in capsys.readouterr().out
    assert len(asked) == 1 + 13 and "benign (03).png" in asked
    assert not Path(f"{out}.partial").exists()
    pd.testing.assert_frame_equal(table, run(many, tmp_path / "whole.csv"))
    assert len(asked) == 1 + 13 + 1 + 44


def test_another_model_begins_anew(here, scans, tmp_path, capsys):
    out = tmp_path / "table.csv"
    interrupted(scans, out, 0)
    table = run(scans, out, serve__alias="challenger")
    assert (
        "holds answers of breast-ultrasound/1, and breast-ultrasound/2 answers now: beginning anew"
        in capsys.readouterr().out
    )
    assert set(table["model_version"]) == {"breast-ultrasound/2"}


class Changing:
    """Two real models: the champion for so many requests, then the challenger; or both by turns."""

    def __init__(self, first, returns):
        models = [sources.local("breast-ultrasound", alias) for alias in ("champion", "challenger")]
        self.turns = itertools.cycle(models) if returns else iter([models[0]] * first + [models[1]] * 9)

    def answers(self, images):
        return next(self.turns).answers(images)


def test_a_server_that_changes_its_model_gives_no_mixed_table(here, scans, tmp_path, capsys):
    many = Path(shutil.copytree(scans, tmp_path / "many"))
    shutil.copy(many / "benign (01).png", many / "z.png")
    found = finding.find(many)
    with Journal(tmp_path / "t.csv") as journal:
        table = predictions.predict(found, Changing(2, returns=False), journal)
    assert table["model_version"].tolist() == ["breast-ultrasound/2"] * 17
    assert "of breast-ultrasound/1, and breast-ultrasound/2 answers now: beginning anew" in capsys.readouterr().out
    with Journal(tmp_path / "u.csv") as journal, pytest.raises(InputError, match="changes its model again and again"):
        predictions.predict(found, Changing(1, returns=True), journal)


def test_other_weights_under_the_same_version_and_another_folder_are_told(tmp_path, capsys):
    now = {"folder": "/a", "model_version": "m/1", "data_version": "d", "probabilities": [0.5, 0.5]}
    row = {"a.png": ((1, 2), {"label": "benign"})}
    for changes, kept in (
        ({}, row), ({"probabilities": [0.5002, 0.4998]}, row), ({"probabilities": [0.6, 0.4]}, {}),
        ({"folder": "/b"}, {}), ({"data_version": "e"}, {}), ({"probabilities": [1.0]}, {}),
        ({"segmenter_version": "s/1"}, {}), ({"segmenter_data_version": "e"}, {}),
    ):  # fmt: skip
        with Journal(tmp_path / "t.csv") as journal:
            journal.begin(now | {"folder": "/anew"})
            assert journal.begin(now) == {}
            journal.add(row)
            assert journal.begin(now | changes) == kept, changes
    assert "of another m/1, and m/1 answers now" in capsys.readouterr().out


class Fixed:
    """A source that gives the answers it was made with."""

    def __init__(self, **answers):
        self.found = answers

    def answers(self, images):
        return {name: self.found[name] for name in images}


def test_what_the_segmenter_refuses_or_abstains_from_keeps_its_class_and_says_why(tmp_path):
    shape = {"lesions": 1, "lesion_area_share": 0.1, "taller_than_wide": 0.8, "circularity": 0.9, "abstain": False,
             "abstain_reason": "", "model_version": "s/1", "data_version": "e"}  # fmt: skip
    classes = Fixed(**{name: {"label": "benign"} for name in ("good", "none", "unlike", "refused")}, bad="bad is bad")
    outlines = Fixed(
        good=shape, none=shape | {"lesions": 0, "taller_than_wide": None}, refused="refused is damaged",
        unlike=shape | {"abstain": True, "abstain_reason": "It is unlike."},
    )  # fmt: skip
    found = sources.WithShapes(classes, outlines).answers(dict.fromkeys((*outlines.found, "bad"), b""))
    assert found.pop("bad") == "bad is bad"
    assert [found[name]["label"] for name in found] == ["benign"] * 4
    table = pd.DataFrame(found).T
    assert table["segmenter_abstain_reason"].to_dict() == {
        "good": "", "none": "", "unlike": "It is unlike.", "refused": "refused is damaged",
    }  # fmt: skip
    assert found["good"]["circularity"] == 0.9 and found["none"]["lesions"] == 0
    assert np.isnan(found["none"]["taller_than_wide"])
    assert all(np.isnan(found[name][key]) for name in ("unlike", "refused") for key in sources.SHAPES)
    assert found["unlike"]["segmenter_version"] == "s/1" and found["refused"]["segmenter_version"] is None
    assert found["good"]["segmenter_data_version"] == "e"


def test_a_journal_torn_anywhere_gives_whole_rows(tmp_path):
    header = {"folder": "/a", "model_version": "m/1", "data_version": "d", "probabilities": [0.5, 0.5]}
    rows = {f"{number}.png": ((number, 2), {"label": "benign"}) for number in range(3)}
    with Journal(tmp_path / "t.csv") as journal:
        journal.begin(header)
        journal.add(rows)
    whole = (tmp_path / "t.csv.partial").read_bytes()
    for end in range(len(whole) + 1):
        (tmp_path / "t.csv.partial").write_bytes(whole[:end])
        with Journal(tmp_path / "t.csv") as journal:
            kept = journal.begin(header)
            assert kept == dict(list(rows.items())[: max(whole[:end].count(b"\n") - 1, 0)])
            journal.add({"new.png": ((1, 1), {})})
            assert set(journal.begin(header)) == {*kept, "new.png"}


def test_a_full_disk_is_told_and_loses_nothing(tmp_path):
    header = {"folder": "/a", "model_version": "m/1", "data_version": "d", "probabilities": [0.5, 0.5]}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path / "t.csv") as journal:
        journal.begin(header)
        journal.add({"a.png": ((1, 1), {})})
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
        try:
            with pytest.raises(InputError, match=r"t\.csv\.partial cannot be written: File too large"):
                journal.add({f"{number}.png": ((1, 1), {}) for number in range(10)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Journal(tmp_path / "t.csv") as journal:
        assert "a.png" in journal.begin(header)


def test_two_cannot_write_the_same_table(here, scans, tmp_path):
    with (
        Journal(tmp_path / "table.csv"),
        pytest.raises(InputError, match=r"another predict writes .*table\.csv\.partial"),
    ):
        run(scans, tmp_path / "table.csv")
    run(scans, tmp_path / "table.csv")


def test_names_and_sizes_of_batches(tmp_path):
    each = [finding.Scan(f"{n}", tmp_path, (size, 0)) for n, size in enumerate([1000] * 35 + [7_000_000] * 2 + [10**9])]
    batches = list(predictions._batches(each))
    assert [one for batch in batches for one in batch] == each
    assert [len(batch) for batch in batches] == [16, 16, 4, 1, 1]
    assert predictions.BATCH == predictor.MAX_IMAGES
    assert predictions.LARGEST == scan.MAX_BYTES + 1
    strange = os.fsdecode(b"scan\xff.png")
    (tmp_path / strange).write_bytes(b"")
    assert [scan.name for scan in finding.find(tmp_path).scans] == [r"scan\xff.png"]


def test_the_real_command_is_interrupted_killed_and_continued(served, scans, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for number in range(480):
        (many / f"{number:03}.png").hardlink_to(scans / f"benign ({number % 12 + 1:02}).png")
    out, journal = tmp_path / "table.csv", tmp_path / "table.csv.partial"
    out.write_text("the table of last time")
    (tmp_path / "reader").hardlink_to(out)  # as who has it open while it is replaced

    def stopped(number, lines):
        process = start_in(served, sys.executable, "-m", "ultrasound", "predict", str(many), "--out", str(out))
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > lines):
            time.sleep(0.005)
        process.send_signal(number)
        said = process.communicate(timeout=600)
        assert out.read_text() == "the table of last time"
        return process.returncode, *said

    code, _, error = stopped(signal.SIGINT, 1)
    after_first = journal.read_bytes().count(b"\n") - 1
    assert (code, after_first % 16) == (130, 0) and 16 <= after_first < 400
    assert error.splitlines()[-1] == (
        f"stopped by Ctrl-C; {after_first} of 480 images are answered in {journal}, "
        "from where the same command continues"
    )
    code, _, _ = stopped(signal.SIGKILL, after_first + 1)
    assert code == -signal.SIGKILL
    after_second = journal.read_bytes().count(b"\n") - 1
    assert after_first < after_second < 480
    done = ultrasound(served, "predict", str(many), "--out", str(out), new=True).stdout
    assert f"continuing: {after_second} of 480 images were answered before" in done
    assert "480 images: 480 answered" in done
    table = pd.read_csv(out)
    assert table["file"].tolist() == [f"{number:03}.png" for number in range(480)]
    repeated = table[NUMBERS].to_numpy().reshape(40, 12, 3)
    np.testing.assert_allclose(repeated, np.broadcast_to(repeated[0], repeated.shape), atol=1e-6)
    assert {file.name for file in tmp_path.iterdir()} == {"many", "reader", "table.csv"}
    assert (tmp_path / "reader").read_text() == "the table of last time"


def test_the_server_gives_the_same_table_and_continues_what_was_begun_here(
    here, url, messy, tmp_path, capsys, monkeypatch
):
    mine = run(messy, tmp_path / "local.csv")
    with pytest.raises(InputError, match="set the environment variable ULTRASOUND_TOKEN"):
        run(messy, tmp_path / "remote.csv", url)
    interrupted(messy, tmp_path / "remote.csv", 1)
    monkeypatch.setenv("ULTRASOUND_TOKEN", TOKEN)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # is not asked for what is on this machine
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    capsys.readouterr()
    theirs = run(messy, tmp_path / "remote.csv", url + "/")
    assert "continuing: 1" in capsys.readouterr().out
    pd.testing.assert_frame_equal(theirs, mine, atol=1e-6)
    pd.testing.assert_frame_equal(run(messy, tmp_path / "all.csv", url), mine, atol=1e-6)


def test_the_example_of_a_client_prints_the_answer(url, scans, here, tmp_path):
    client = [sys.executable, str(PROJECT / "scripts/client.py")]
    said = run_in(here, *client, str(scans / "benign (01).png"), url, ULTRASOUND_TOKEN=TOKEN).stdout
    one = run(scans / "benign (01).png", tmp_path / "one.csv").iloc[0]
    answer = ast.literal_eval(said)
    assert answer["label"] == one["label"] and answer["p_malignant"] == pytest.approx(one["p_malignant"], abs=1e-5)
    refused = run_in(here, *client, str(scans / "notes.txt"), url, ULTRASOUND_TOKEN=TOKEN).stdout
    assert refused == "Image 1 is not a PNG, JPEG or DICOM file.\n"


@contextlib.contextmanager
def before(address, first):
    """A proxy before a server; it answers the first requests with these statuses, 0 breaks the connection."""
    statuses = list(first)

    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers = (statuses.pop(0) if statuses else 200), dict(self.headers)
            if status == 0:
                self.close_connection = True
                return
            content = json.dumps({"message": "Not now."}).encode()
            if status == 200:
                request = urllib.request.Request(f"{address}{self.path}", body, headers)
                with urllib.request.urlopen(request, timeout=60) as answer:
                    content = answer.read()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if status in (429, 503):
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def test_a_busy_server_is_waited_for_and_a_broken_one_is_told(here, url, scans, tmp_path, monkeypatch):
    monkeypatch.setenv("ULTRASOUND_TOKEN", TOKEN)
    with before(url, [503, 200, 429, 0]) as proxy:
        began = time.monotonic()
        table = run(scans, tmp_path / "busy.csv", proxy)
        assert time.monotonic() - began >= 2
    assert table["error"].isna().all()
    monkeypatch.setattr(sources, "WAITS", 0)
    for statuses, said in (
        ([429], "too busy"), ([404], "HTTP 404: Not now"), ([200, 503], "too busy.*0 of 16 images are answered"),
        ([200, 500, 500], r"fails on benign \(01\).png: Not now"),
    ):  # fmt: skip
        with before(url, statuses) as proxy, pytest.raises(InputError, match=said):
            run(scans, tmp_path / "table.csv", proxy)
    with before(url, [400, 200]) as proxy, pytest.raises(InputError, match=r"answers to no image: .*Not now"):
        run(scans, tmp_path / "table.csv", proxy)
    with before(url, [200, 400, 413]) as proxy:
        table = run(scans, tmp_path / "table.csv", proxy)
    assert table["error"].dropna().tolist() == ["benign (01).png: Not now"]
