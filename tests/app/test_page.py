"""The real page in a real browser, asking the real server."""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from tests import guarded_server
from tests.conftest import environment
from tests.dicoms import PATIENT, dicom
from tests.guarded_server import free_port, guarded
from ultrasound import NOTICE
from ultrasound.app import asking, words
from ultrasound.images.sources.phantom import phantom

SCREENSHOTS = os.environ.get("SCREENSHOTS")  # a folder to keep what was seen
TOKEN = "0123456789-of-the-tests"
WAIT = 300  # seconds
CONTRASTS = """() => {
  const parse = text => { const [r, g, b, a] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a ?? 1] };
  const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3]));
  const light = colour => { const [r, g, b] = colour.map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const found = [];
  for (const element of document.querySelectorAll('[data-testid=stMain] *')) {
    const words = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.data).join(' ').trim();
    if (!words || !element.checkVisibility({ opacityProperty: true })
      || element.getBoundingClientRect().width <= 1 || element.closest('[data-testid=stSliderThumbValue]')
      || element.closest('style, [data-testid=stIconMaterial]')) continue;  // the value stands above its thumb
    const line = []; let opacity = 1;
    for (let each = element; each; each = each.parentElement) {
      line.unshift(parse(getComputedStyle(each).backgroundColor)); opacity *= getComputedStyle(each).opacity }
    line.unshift(parse(getComputedStyle(document.querySelector('.stApp')).backgroundColor));
    const under = line.reduce((ground, layer) => over(layer, ground), [255, 255, 255]);
    const colour = parse(getComputedStyle(element).color); colour[3] *= opacity;
    const [one, other] = [light(over(colour, under)), light(under)].sort((a, b) => a - b);
    found.push([words.slice(0, 50), (other + 0.05) / (one + 0.05), light(under)]);
  }
  return found }"""


@contextlib.contextmanager
def showing(project, *options, **extra):
    """`python -m ultrasound app`; answers when the block begins."""
    port, log = free_port(), project / f"build/app-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "ultrasound", "app", "--app.port", str(port), *options]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=project, env=environment(**extra), stdout=file, stderr=file)
    try:
        end = time.monotonic() + WAIT
        while "the page: http" not in log.read_text():
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield SimpleNamespace(process=process, port=port, url=f"http://127.0.0.1:{port}", log=log)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(WAIT)


@pytest.fixture(scope="module")
def server_port():
    return free_port()


@pytest.fixture(scope="module")
def page(served, server_port):
    with showing(served, f"--app.url=http://127.0.0.1:{server_port}") as page:
        yield page


@pytest.fixture(scope="module")
def server(served, server_port):
    """The server that the page asks; the first test needs it to be down, and starts it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guarded_server, "free_port", lambda: server_port)
        with guarded(served) as server:
            yield server


@pytest.fixture(scope="module")
def files(server):
    """One PNG that the model answers, one that it abstains from, and what it says of each when it is asked directly."""
    ask, files = asking.Server(server.url).answer, SimpleNamespace(answered=None)
    for number in range(1, 20):
        buffer = io.BytesIO()
        phantom("benign", number, 0)[0].save(buffer, "PNG")
        if not (answer := ask(buffer.getvalue())).abstain:
            files.answered, files.answer = buffer.getvalue(), answer
            break
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)).save(buffer, "PNG")
    files.held, files.abstained = buffer.getvalue(), ask(buffer.getvalue())
    assert files.answered, "the champion of `served` abstains from all phantoms: train it with a lower coverage"
    assert files.abstained.abstain
    return files


@pytest.fixture
def tab(browser, page):
    """A tab that notes what it asks for beyond this machine, and what goes wrong in it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(1000 * WAIT)
    tab = context.new_page()
    tab.strangers, tab.errors = [], []
    inside = ("data:", "blob:", f"{page.url}/", f"ws://127.0.0.1:{page.port}/")
    tab.on("request", lambda request: request.url.startswith(inside) or tab.strangers.append(request.url))
    tab.on("websocket", lambda socket: socket.url.startswith(inside) or tab.strangers.append(socket.url))
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    yield tab
    context.close()
    assert tab.strangers == [] and tab.errors == []


def opened(tab, page):
    tab.goto(page.url)
    tab.get_by_role("heading", name=words.ANSWERS, exact=True).wait_for()


def upload(tab, *contents):
    """Choose files, given as (name, content)."""
    chosen = [{"name": name, "mimeType": "application/octet-stream", "buffer": content} for name, content in contents]
    tab.locator("input[type=file]").set_input_files(chosen)
    for number in range(1, len(contents) + 1):
        tab.get_by_role("heading", name=f"Image {number}:").wait_for()


def sheets(tab, count):
    """The buttons for sheets, as many as there are answers."""
    buttons = tab.get_by_role("button", name=words.SHEET)
    buttons.nth(count - 1).wait_for()
    assert buttons.count() == count
    return buttons


def downloaded(tab, button):
    with tab.expect_download() as waiting:
        button.click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_text()


def keep(tab, name):
    if SCREENSHOTS:
        tab.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def test_without_a_server_the_page_says_what_to_do_and_trying_again_goes_on(tab, page, server_port, request):
    opened(tab, page)
    tab.get_by_text(words.PHANTOM, exact=True).click()
    told = tab.get_by_role("alert").filter(has_text=f"No server answers at http://127.0.0.1:{server_port}")
    told.wait_for()
    assert "python -m ultrasound serve" in told.inner_text()
    tab.get_by_text(words.NOT_ASKED).wait_for()
    keep(tab, "down")
    request.getfixturevalue("server")
    tab.get_by_role("button", name=words.RETRY).click()
    sheets(tab, 1)
    assert told.count() == 0
    assert tab.get_by_text("synthetic phantom, benign 1").count() and tab.get_by_text("shows no person").count()
    assert tab.get_by_text(NOTICE).count() == 2


def test_a_png_a_dicom_and_a_bad_file_are_answered_each_for_itself(tab, page, files):
    opened(tab, page)
    pixels = np.asarray(Image.open(io.BytesIO(files.answered)))
    upload(tab, ("Jane_Doe.png", files.answered), ("notes *of* <b>x</b>.png", b"no image"), ("IM0001", dicom(pixels)))
    buttons = sheets(tab, 2)
    assert tab.get_by_role("heading", name="Image 2: notes *of* <b>x</b>.png").count() == 1
    refused = tab.get_by_role("alert").filter(has_text="This file is not a PNG, JPEG or DICOM file.")
    assert refused.count() == 1 and "the other images are not affected" in refused.inner_text()
    answer = files.answer
    headings = tab.get_by_role("heading", name=words.heading(answer.label, answer.probabilities[answer.label]))
    assert headings.count() == 2  # the same pixels: the same answer
    for name, probability in answer.probabilities.items():
        rows = tab.get_by_role("row", name=f"{name} {words.percent(probability)}")
        assert rows.count() == 2
        width = rows.first.evaluate("row => row.querySelector('.track div').offsetWidth"
                                    " / row.querySelector('.track').offsetWidth")  # fmt: skip
        assert width == pytest.approx(max(probability, 0.01), abs=0.02)
    for sentence in words.sentences(answer):
        assert tab.get_by_text(sentence).count() == 2
    run_id = requests.get(f"{page_server(page)}/ready", timeout=10).json()["run_id"]
    link = tab.get_by_role("link", name=words.OPENING).first
    assert link.get_attribute("href") == f"http://127.0.0.1:5000/#/experiments/0/runs/{run_id}"
    keep(tab, "answers")
    name, sheet = downloaded(tab, buttons.nth(0))
    assert name.endswith(".html") and NOTICE in sheet and answer.model_version in sheet
    assert words.heading(answer.label, answer.probabilities[answer.label]) in sheet and "Jane" not in name + sheet
    assert printed_pages(tab, sheet) == 1
    assert PATIENT not in downloaded(tab, buttons.nth(1))[1]
    tab.get_by_text(words.SHEET_NAME).first.click()
    time.sleep(0.5)
    tab.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
    assert "Jane_Doe.png" in downloaded(tab, buttons.nth(0))[1]


def printed_pages(tab, sheet):
    """How many pages of paper a sheet takes; it asks for nothing."""
    paper = tab.context.new_page()
    paper.on("request", lambda request: request.url.startswith("data:") or tab.strangers.append(request.url))
    paper.set_content(sheet)
    pages = re.findall(rb"/Type\s*/Page\b", paper.pdf(prefer_css_page_size=True))
    paper.close()
    return len(pages)


def page_server(page):
    """Address of the server that a page asks, from its own words."""
    return re.search(r"asks (\S+)\)", page.log.read_text()).group(1)


def test_the_slider_lays_the_heat_map_over_the_image_the_keyboard_moves_it_and_nobody_is_asked_again(
    tab, page, files, server
):
    opened(tab, page)
    upload(tab, ("scan.png", files.answered))
    sheets(tab, 1)
    asked = sum(line.get("path") == "/invocations" for line in server.lines())
    shown = tab.get_by_role("img", name=f"Image 1: ultrasound image, covered by the heat map for {files.answer.label}")
    seen = [picture(tab, shown)]
    slider = tab.get_by_role("slider", name=words.OPACITY)
    tab.get_by_role("radio").first.focus()
    reached = []
    for _ in range(30):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.ariaLabel"))
        if reached[-1] == words.OPACITY:
            break
    assert reached[-1] == words.OPACITY and "Add files" in reached, reached
    for key in ("Home", "End"):
        before = shown.get_attribute("src")
        slider.press(key)
        tab.wait_for_function("([image, before]) => image.getAttribute('src') !== before",
                              arg=[shown.element_handle(), before])  # fmt: skip
        seen.append(picture(tab, shown))
    scan = np.asarray(Image.open(io.BytesIO(files.answered)).convert("RGB"), float)
    differences = [np.abs(each - scan).mean() for each in (seen[1], seen[0], seen[2])]
    assert differences[0] < 0.01 and differences[0] + 1 < differences[1] < differences[2]
    assert sum(line.get("path") == "/invocations" for line in server.lines()) == asked


def picture(tab, image):
    """The pixels of a picture of the page, as it was sent."""
    response = tab.request.get(image.evaluate("image => image.src"))
    return np.asarray(Image.open(io.BytesIO(response.body())).convert("RGB"), float)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_an_abstention_is_read_without_numbers_in_light_and_dark(tab, page, files, scheme):
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": 390, "height": 844})
    opened(tab, page)
    upload(tab, ("noise.png", files.held), ("scan.png", files.answered))
    sheets(tab, 2)
    assert tab.get_by_text(words.sentences(files.abstained)[0]).count() == 1
    inside = tab.locator("details").filter(has_text=words.NUMBERS)
    assert inside.count() == 1 and inside.get_attribute("open") is None
    assert tab.get_by_role("heading", name="Most probable class").count() == 1  # of the other image
    assert tab.locator("table.bars").filter(visible=True).count() == 1
    inside.locator("summary").click()
    inside.get_by_text(words.NUMBERS_WARNING).wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.evaluate("[...document.querySelectorAll('[data-testid=stMain] *')]"
                        ".every(each => each.getBoundingClientRect().right <= 391)")  # fmt: skip
    keep(tab, f"phone-{scheme}")
    found = tab.evaluate(CONTRASTS)
    assert len(found) > 25
    poor = [(text, ratio) for text, ratio, _ in found if ratio < 4.5]  # WCAG 2.2, 1.4.3
    assert poor == []
    assert all((ground < 0.2) == (scheme == "dark") for _, _, ground in found)


def test_a_port_in_use_and_an_end_by_signal(served, page):
    command = [sys.executable, "-m", "ultrasound", "app", "--app.port", str(page.port)]
    refused = subprocess.run(command, cwd=served, env=environment(), capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: the page cannot listen on port {page.port}")
    assert refused.stderr.count("\n") == 1


def line_of(process):
    with contextlib.suppress(psutil.Error):  # gone in a moment
        return process.cmdline()
    return []


def test_with_a_server_of_its_own_it_asks_with_the_token_and_ends_both(served):
    port = free_port()
    options = ["--with-server", f"--serve.port={port}"]
    with showing(served, *options, ULTRASOUND_TOKEN=TOKEN) as page:
        family = psutil.Process(page.process.pid).children(recursive=True)
        words_of = [word for each in family for word in line_of(each)]
        assert {"streamlit", "serve"} <= set(words_of)
        assert not any(TOKEN in word for word in words_of)
        assert (
            asking.Server(f"http://127.0.0.1:{port}", TOKEN).identity().model_version.startswith("breast-ultrasound/")
        )
        with pytest.raises(asking.ServerError, match="ULTRASOUND_TOKEN"):
            asking.Server(f"http://127.0.0.1:{port}", "wrong").answer(b"x")
        with pytest.raises(asking.ImageError):
            asking.Server(f"http://127.0.0.1:{port}", TOKEN).answer(b"x")
        page.process.send_signal(signal.SIGTERM)
        assert page.process.wait(WAIT) == 128 + signal.SIGTERM
        assert psutil.wait_procs(family, timeout=5)[1] == []
    for each in (port, page.port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", each), timeout=5)
    assert TOKEN not in page.log.read_text()


def test_nothing_is_left_running_when_the_page_is_killed(served):
    with showing(served, "--with-server", f"--serve.port={free_port()}") as page:
        family = psutil.Process(page.process.pid).children(recursive=True)
        page.process.kill()
        page.process.wait()
        assert psutil.wait_procs(family, timeout=60)[1] == []


def test_without_a_model_the_page_says_so(served, browser):
    with showing(served, "--with-server", "--serve.alias=nobody", f"--serve.port={free_port()}") as page:
        tab = browser.new_page()
        tab.goto(page.url)
        alert = tab.get_by_role("alert").filter(has_text="No model can be asked")
        alert.wait_for(timeout=1000 * WAIT)
        assert "with the alias nobody" in alert.inner_text() and "ultrasound register" in alert.inner_text()
        assert tab.get_by_text(NOTICE).count()
        tab.close()
    assert "with the alias nobody" in page.log.read_text()
