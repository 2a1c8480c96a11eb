"""What the page says, draws and hands out, without a browser; and how it asks, over real connections."""

import asyncio
import base64
import contextlib
import dataclasses
import datetime
import io
import json
import subprocess
import sys
import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image, PngImagePlugin
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartParser

from tests.guarded_server import free_port
from ultrasound import NOTICE
from ultrasound.app import answering, asking, launching, pictures, sheet, words
from ultrasound.app.asking import Answer, ImageError, Outline, Server, ServerError
from ultrasound.errors import InputError

CLASSES = ("benign", "malignant", "normal")
SCAN = Image.fromarray(np.arange(60 * 80, dtype=np.uint16).reshape(60, 80).astype(np.uint8))
TIME = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def row(**changes):
    """A row of the served model."""
    return {
        "label": "malignant", "p_benign": 0.1, "p_malignant": 0.85, "p_normal": 0.05, "malignant_flag": True,
        "prediction_set": ["malignant"], "abstain": False, "abstain_reason": "", "model_version": "breast-ultrasound/3",
        "data_version": "0123456789abcdef", "notice": NOTICE,
        "heat_map": base64.b64encode(png(np.full((60, 80), 255, np.uint8))).decode(),
    } | changes  # fmt: skip


def answered(**changes):
    return asking._answer(row(**changes))


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0, "< 0.1 %"), (0.0004, "< 0.1 %"), (0.0006, "0.1 %"), (0.5, "50.0 %"), (0.9994, "99.9 %"), (1, "> 99.9 %")],
)
def test_no_class_is_called_certain_or_impossible(probability, text):
    assert words.percent(probability) == text


def test_the_operating_point_is_told_in_words_where_it_and_the_class_differ_too():
    say = words.operating_point
    plainly = say("malignant", True, "malignant", 0.9)
    assert plainly.startswith("At the operating point this counts as malignant: its probability, 90.0 %, reaches")
    flagged = say("malignant", True, "benign", 0.3)
    assert flagged.startswith("At the operating point this counts as malignant, although benign is more probable:")
    missed = say("malignant", False, "malignant", 0.4)
    assert "does not count as malignant, although malignant is the most probable class:" in missed
    assert "although" not in say("malignant", False, "normal", 0.1)


def test_prediction_sets_of_every_size_have_a_sentence():
    say = [words.prediction_set(CLASSES[:size], CLASSES) for size in range(4)]
    assert say == [
        "No class fits: none is probable enough to stand in the prediction set.",
        "Only benign stays possible: the prediction set rules the other classes out.",
        "The model cannot tell benign from malignant here: both stay possible.",
        "The model cannot tell the classes apart here: benign, malignant and normal all stay possible.",
    ]
    four = words.prediction_set(CLASSES, (*CLASSES, "cyst"))
    assert four == "The model cannot tell benign, malignant from normal here: all stay possible."


def test_an_abstention_names_no_class_as_an_answer():
    unfamiliar = answered(abstain=True, abstain_reason="The image does not look like a scan.")
    assert words.sentences(unfamiliar) == ["The model gives no answer. The image does not look like a scan."]
    reason = "The model cannot decide between benign and malignant."
    undecided = answered(abstain=True, abstain_reason=reason, prediction_set=["benign", "malignant"])
    assert words.sentences(undecided) == [f"The model gives no answer. {reason} Both stay possible."]
    empty = words.abstention("No class is probable enough.", [], CLASSES)
    assert empty == "The model gives no answer. No class is probable enough. The prediction set is empty."
    blurred = words.abstention("The image is blurred.", ["benign", "normal"], CLASSES)
    assert "cannot tell benign from normal here" in blurred


@pytest.mark.parametrize(
    ("tracking", "address"),
    [
        ("", "http://127.0.0.1:5000"),
        ("sqlite:///mlflow.db", "http://127.0.0.1:5000"),
        ("https://user:secret@mlflow.example.org/team/", "https://mlflow.example.org/team"),
    ],
)
def test_the_run_of_a_model_is_linked_without_passwords(tracking, address):
    run = "0123456789abcdef" * 2
    assert words.run_address(tracking, "7", run) == f"{address}/#/experiments/7/runs/{run}"


@pytest.mark.parametrize("run", ["", "../x", "0123456789abcdef" * 2 + ")"])
def test_what_is_no_run_is_not_linked(run):
    assert words.run_address("", "0", run) == ""
    assert words.run_address("", "javascript:1", "0123456789abcdef" * 2) == ""


def test_text_of_others_is_shown_letter_by_letter():
    assert words.plain("a_b* [c](d) <b>\n:red[x] $1$") == r"a\_b\* \[c\]\(d\) \<b\> \:red\[x\] \$1\$"
    assert words.plain("scan 1") == "scan 1"


def test_the_overlay_covers_where_it_is_hot_as_far_as_the_slider_says():
    heat = np.zeros((60, 80), np.uint8)
    heat[:30] = 255
    grey = np.repeat(np.asarray(SCAN)[:, :, None], 3, axis=2)
    for opacity in (0, 0.4, 1):
        shown = np.asarray(pictures.overlay(SCAN, png(heat), opacity))
        hottest = 255 * np.array(colormaps["inferno"](1.0)[:3])
        assert (shown[30:] == grey[30:]).all()
        np.testing.assert_allclose(shown[:30], grey[:30] * (1 - opacity) + hottest * opacity, atol=0.51)


def test_the_outline_runs_around_the_lesion_and_covers_nothing_of_it():
    inside = np.zeros((60, 80), bool)
    inside[10:30, 20:60] = inside[30:40, 50:60] = True  # the same from no two sides
    shown = np.asarray(pictures.outlined(SCAN, png(inside.astype(np.uint8) * 255)))
    grey = np.repeat(np.asarray(SCAN)[:, :, None], 3, axis=2)
    drawn = (shown == pictures.OUTLINE).all(axis=2)
    around = cv2.dilate(inside.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))) > 0
    assert (drawn == (around & ~inside)).all()  # of so small a scan one pixel wide
    assert (shown[~drawn] == grey[~drawn]).all()
    with pytest.raises(InputError, match="outline that the server sent is not as large as the image"):
        pictures.outlined(SCAN, png(np.zeros((80, 60), np.uint8)))


def test_a_class_that_is_flagged_is_never_called_ruled_out():
    said = words.sentences(answered(label="benign", p_benign=0.7, p_malignant=0.2, p_normal=0.1, malignant_flag=True,
                                    prediction_set=["benign"]))  # fmt: skip
    assert len(said) == 2 and said[0].startswith("At the operating point this counts as malignant, although benign is")
    assert said[1].startswith("The prediction set holds benign without malignant;")
    assert said[1].endswith("so malignant is not ruled out here.") and "rules" not in " ".join(said)
    agreeing = words.sentences(answered(malignant_flag=False, label="benign", prediction_set=["benign"]))
    assert agreeing[1] == "Only benign stays possible: the prediction set rules the other classes out."


def test_large_pictures_are_drawn_as_large_as_they_are_seen():
    scan = Image.new("L", (5000, 3000), 50)
    mask = np.zeros((3000, 5000), np.uint8)
    mask[1000:2000, 2000:4000] = 255
    tracemalloc.start()
    for picture in (pictures.overlay(scan, png(mask), 0.5), pictures.outlined(scan, png(mask))):
        assert picture.size == (pictures.LONGEST, 840)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6


def found(**changes):
    return Outline(**{
        "mask": b"", "lesions": 1, "area_share": 0.123, "taller_than_wide": 0.5, "circularity": 0.75, "abstain": False,
        "abstain_reason": "", "model_version": "segmenter/2", **changes,
    })  # fmt: skip


def test_what_the_segmenter_says_is_told_in_words():
    said = words.outline(found())
    assert said == ("Outlined by segmenter/2: 12.3 % of the scan; it is 0.50 times as tall as wide, its circularity is "
                    "0.75 (1 is a disc).")  # fmt: skip
    several = words.outline(found(lesions=3))
    assert "3 regions, together 12.3 % of the scan; the largest is 0.50" in several
    nothing = found(lesions=0, area_share=0.0, taller_than_wide=None, circularity=None)
    assert words.outline(nothing) == "No lesion was outlined by segmenter/2. That does not mean that there is none."
    unlike = words.outline(found(abstain=True, abstain_reason="It is unlike."))
    assert unlike == "The segmenter draws no outline. It is unlike. (segmenter/2)"


def test_a_heat_map_without_heat_is_told_from_one_with_some():
    heat = np.zeros((60, 80), np.uint8)
    assert pictures.is_cold(png(heat))
    heat[3, 4] = 1
    assert not pictures.is_cold(png(heat))
    cold = answered(heat_map=base64.b64encode(png(np.zeros((60, 80), np.uint8))).decode())
    assert "Grad-CAM" not in sheet.render(SCAN, cold, "ab" * 32, 0.5, TIME, is_synthetic=False)


@pytest.mark.parametrize(
    ("heat", "says"), [(png(np.zeros((9, 9), np.uint8)), "not as large as the image"), (b"\x89PNG", "is damaged")]
)
def test_a_heat_map_that_does_not_fit_is_refused(heat, says):
    with pytest.raises(InputError, match=says):
        pictures.overlay(SCAN, heat, 0.5)


def test_a_sheet_holds_all_but_the_patient():
    file = io.BytesIO()
    hidden = PngImagePlugin.PngInfo()
    hidden.add_text("Comment", "SECRET NAME")
    SCAN.save(file, "PNG", pnginfo=hidden)
    scan = Image.open(file)
    scan.load()
    html = sheet.render(scan, answered(), "ab" * 32, 0.5, TIME, is_synthetic=False)
    sources = [part.partition('"')[0] for part in html.split('src="')[1:]]
    assert len(sources) == 2 and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    contents = [base64.b64decode(source.partition(",")[2]) for source in sources]
    assert not any(b"SECRET" in content for content in contents)
    shown = np.asarray(Image.open(io.BytesIO(contents[0])), float)
    assert np.abs(shown - np.asarray(SCAN)).mean() < 3
    for text in (NOTICE, "Most probable class: malignant, 85.0 %", "10.0 %", "Only malignant stays possible",
                 "counts as malignant", "breast-ultrasound/3", "0123456789abcdef", "2026-01-02 03:04+00:00",
                 "abababababababab", "80 x 60 pixels", "Grad-CAM"):  # fmt: skip
        assert text in html
    assert "File" not in html
    hostile = '<img src=x onerror="alert(1)">'
    named = sheet.render(scan, answered(), "ab" * 32, 0.5, TIME, is_synthetic=True, file_name=hostile)
    assert hostile not in named and "&lt;img src=x" in named and "Synthetic phantom" in named


def test_a_sheet_of_an_abstention_holds_no_class_and_no_number():
    held = answered(abstain=True, abstain_reason="The image does not look like a scan.")
    html = sheet.render(SCAN, held, "ab" * 32, 0.5, TIME, is_synthetic=False)
    assert "The model gives no answer. The image does not look like a scan." in html and NOTICE in html
    assert html.count("<img") == 1
    assert not any(text in html for text in (*CLASSES, "85.0", "Grad-CAM"))


@contextlib.contextmanager
def saying(status, content, pause=0.0):
    """A server that gives one answer to all, and notes what it was asked."""
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            heard.append((self.path, dict(self.headers), body))
            time.sleep(pause)
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Location", "http://192.0.2.1/")
                self.end_headers()
                self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

        do_GET = do_POST  # noqa: N815 - the name that http.server looks for

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", heard
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "content", "says"),
    [
        (401, {"message": "No."}, "set the environment variable `ULTRASOUND_TOKEN`"),
        (429, {"message": "The server is busy: try again."}, "Wait some seconds, then press Try again"),
        (503, {"ready": False}, "has no model ready"),
        (500, {"message": "The model *failed*."}, r"failed with HTTP 500. It says: The model \*failed\*\."),
        (302, {}, "failed with HTTP 302"),
        (200, b"<html>", "is not a server of this model"),
        (200, {"predictions": []}, "is not a server of this model"),
        (200, {"predictions": [row(p_normal=7)]}, "is not a server of this model"),
        (200, {"predictions": [row(abstain="false")]}, "is not a server of this model"),
        (200, {"predictions": [row(prediction_set=["else"])]}, "is not a server of this model"),
        (200, {"predictions": [{"label": "malignant"}]}, "is not a server of this model"),
    ],
)
def test_every_way_of_not_answering_is_a_sentence_that_says_what_to_do(status, content, says):
    with saying(status, content) as (url, _), pytest.raises(ServerError) as told:
        Server(url, "the-token").answer(b"x")
    assert says in str(told.value) and url in str(told.value)
    assert "the-token" not in str(told.value)


def test_a_refused_image_concerns_that_image_alone():
    answer = {"message": "Image 1 is not a PNG, JPEG or DICOM file."}
    with saying(400, answer) as (url, _), pytest.raises(ImageError) as told:
        Server(url).answer(b"x")
    expected = "This file is not a PNG, JPEG or DICOM file. Choose another file; the other images are not affected."
    assert str(told.value) == expected


def test_silence_is_told_from_slowness(monkeypatch):
    monkeypatch.setattr(asking, "TIMEOUT", (1.0, 0.2))
    with saying(200, {}, pause=0.6) as (url, _), pytest.raises(ServerError, match="did not answer within"):
        Server(url).answer(b"x")
    with pytest.raises(ServerError, match="Start it with `python -m ultrasound serve`"):
        Server(f"http://127.0.0.1:{free_port()}").identity()


def test_an_answer_is_read_and_the_token_goes_into_the_header_alone(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password else")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:9")
    with saying(200, {"predictions": [row(malignant_flag=False)]}) as (url, heard):
        found = Server(f"{url}/", "the-token").answer(b"content")
    assert found == Answer(
        "malignant", {"benign": 0.1, "malignant": 0.85, "normal": 0.05}, {"malignant": False}, ("malignant",),
        False, "", "breast-ultrasound/3", "0123456789abcdef", png(np.full((60, 80), 255, np.uint8)),
    )  # fmt: skip
    ((path, headers, body),) = heard
    assert path == "/invocations" and headers["Authorization"] == "Bearer the-token"
    sent = json.loads(body)
    assert sent["params"] == {"explain": True}
    assert sent["dataframe_split"] == {"columns": ["image"], "data": [[base64.b64encode(b"content").decode()]]}


def test_a_server_that_does_not_say_who_it_is_has_an_empty_identity():
    with saying(404, {}) as (url, _):
        assert Server(url).identity() == asking.Identity()
    with saying(200, {"model_version": "m/1", "run_id": "r", "ready": True}) as (url, _):
        assert Server(url).identity() == asking.Identity("m/1", "r", "")


def test_an_outline_is_asked_for_once_a_version_and_a_server_that_fails_once_a_run(monkeypatch):
    mask = base64.b64encode(png(np.zeros((60, 80), np.uint8))).decode()
    shape = {"mask": mask, "lesions": 0, "lesion_area_share": 0.0, "taller_than_wide": None, "circularity": None,
             "abstain": False, "abstain_reason": "", "model_version": "s/1"}  # fmt: skip
    item, plain = answering.Item("a", b"content"), answering.Answered(SCAN, answered(), TIME)
    with saying(200, {"model_version": "s/1", "predictions": [shape]}) as (url, heard):
        monkeypatch.setenv("ULTRASOUND_OUTLINES", url)
        once = answering.Segmenter().outlined(plain, item)
        assert once.outline.model_version == "s/1" and not once.no_outline
        assert answering.Segmenter().outlined(once, item) is once  # the page runs anew: only who answers is asked
        assert [path for path, _, _ in heard] == ["/ready", "/invocations", "/ready"]
        older = dataclasses.replace(once, outline=dataclasses.replace(once.outline, model_version="s/0"))
        assert answering.Segmenter().outlined(older, item).outline.model_version == "s/1"
    with saying(500, {}) as (url, heard):
        monkeypatch.setenv("ULTRASOUND_OUTLINES", url)
        failing = answering.Segmenter()
        for each in (plain, once):
            found = failing.outlined(each, item)
            assert found.outline is None and found.no_outline == words.SEGMENTER_DOWN
        assert len(heard) == 1
    monkeypatch.delenv("ULTRASOUND_OUTLINES")
    assert answering.Segmenter().outlined(plain, item) is plain


def test_the_page_needs_neither_torch_nor_mlflow():
    modules = "ultrasound.app.page, ultrasound.app.launching, ultrasound.commands.app"
    heavy = "{'torch', 'mlflow', 'onnxruntime', 'ultrasound.tracking'}"
    program = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_an_upload_stays_in_memory():
    from ultrasound.app import page  # it changes Starlette's limit

    content = b"x" * (page.LARGEST_MB * 2**20)
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'

    async def stream():
        yield head + content + b"\r\n--b--\r\n"

    headers = Headers({"content-type": "multipart/form-data; boundary=b"})
    file = asyncio.run(MultiPartParser(headers, stream()).parse())["file"].file
    assert not file._rolled and file.read() == content


@pytest.mark.parametrize("url", ["http://", "http://user:word@127.0.0.1", "http://127.0.0.1:99999", "http://a/?b"])
def test_an_address_that_is_none_is_refused_before_anything_starts(url):
    with pytest.raises(InputError, match=r"app\.url is no address") as told:
        launching.run(url, free_port())
    assert "word" not in str(told.value)
