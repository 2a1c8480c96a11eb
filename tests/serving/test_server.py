"""The guarded server: a real process, asked over HTTP in every bad way that we could think of."""

import base64
import contextlib
import io
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import mlflow
import numpy as np
import psutil
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from mlflow.models import ModelSignature
from mlflow.types import ParamSchema, ParamSpec
from mlflow.types.schema import ColSpec, Schema
from PIL import Image

from tests.bad_bodies import EXAMPLES, GENERATED, IMAGE, KINDS, LENIENT, PNG, good
from tests.conftest import SMALL, copy_project, environment, tracking_store, ultrasound
from tests.guarded_server import NAME, answer, free_port, guarded, head, point
from ultrasound.errors import InputError
from ultrasound.images.preparation import Preparation
from ultrasound.inference.calibration import Calibration
from ultrasound.learning.backbone import Network
from ultrasound.learning.classifier import Classifier, Ensemble
from ultrasound.scoring import resemblance
from ultrasound.serving import fleet
from ultrasound.tracking import models, serving_versions, store

TOKEN = "0123456789-of-the-tests"
PASS = f"Authorization: Bearer {TOKEN}"
TINY = '''
    import time
    import mlflow
    import ultrasound

    class Tiny(mlflow.pyfunc.PythonModel):
        """Takes as many seconds as a row says."""

        def load_context(self, context):
            if BROKEN:
                raise ImportError("never")
            time.sleep(LOADING)

        def predict(self, context, model_input, params=None):
            for row in model_input["image"]:
                if row == "fail":
                    raise RuntimeError("it holds " + "a secret")
                time.sleep(float(row))
            return [{"code": ultrasound.__file__ + " " + ultrasound.WHOSE} for _ in model_input["image"]]

    mlflow.models.set_model(Tiny())
'''


@pytest.fixture(scope="module")
def server(served):
    with guarded(served, "--serve.patience", "2", "--serve.poll", "0.5") as running:
        yield running


def test_a_good_request_is_answered(server):
    answered = server.ask(good(PNG))
    assert answered.status_code == 200
    [row] = answered.json()["predictions"]
    assert row["model_version"] == "breast-ultrasound/1" and row["label"] in ("benign", "malignant", "normal")
    assert answered.headers["X-Content-Type-Options"] == "nosniff" and answered.headers["Cache-Control"] == "no-store"
    assert "Server" not in answered.headers
    explained = server.ask(good(PNG, explain=True)).json()["predictions"][0]
    assert explained["heat_map"] and "heat_map" not in row


def test_every_form_has_the_same_answer(server):
    texts = [{"image": IMAGE}, {"image": IMAGE}]
    forms = [
        {"dataframe_split": {"columns": ["image"], "index": [3, 4], "data": [[IMAGE], [IMAGE]]}},
        {"dataframe_records": texts}, {"instances": texts}, {"inputs": texts}, {"instances": [IMAGE] * 2},
        {"inputs": [IMAGE] * 2}, {"inputs": {"image": [IMAGE] * 2}},
    ]  # fmt: skip
    expected = server.ask(good(PNG, PNG)).json()
    for form in forms:
        assert server.ask(json.dumps(form).encode()).json() == expected


def test_the_paths_beside(server):
    ready = server.get("/ready")
    assert ready.json()["ready"] is True and ready.json()["model_version"] == "breast-ultrasound/1"
    assert server.get("/health").status_code == server.get("/ping").status_code == 200
    assert server.get("/version").text == mlflow.__version__
    assert requests.head(server.url + "/ready", timeout=9).headers["Content-Length"] == ready.headers["Content-Length"]
    assert 'ultrasound_requests_total{method="GET",path="/ready",status="200"}' in server.get("/metrics").text


def test_openapi_describes_what_is_answered(server):
    document = server.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {
        "/invocations", "/health", "/ping", "/ready", "/version", "/metrics", "/openapi.json"
    }  # fmt: skip
    for reference in re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document)):
        assert reference in document["components"]["schemas"]
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    schemas = document["components"]["schemas"]
    jsonschema.validate(json.loads(good(PNG, explain=True)), schemas["Request"])
    for explain in (False, True):
        jsonschema.validate(server.ask(good(PNG, explain=explain)).json(), schemas["Answer"])
    assert schemas["Answer"]["properties"]["predictions"]["items"]["properties"]["heat_map"] == {"type": "string"}
    assert {"p_benign", "p_malignant", "p_normal"} <= set(
        schemas["Answer"]["properties"]["predictions"]["items"]["properties"]
    )
    for body in (
        b"{}",
        json.dumps({"inputs": [1]}).encode(),
        json.dumps({"inputs": [IMAGE], "instances": [IMAGE]}).encode(),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(body), schemas["Request"])
        refused = server.ask(body)
        assert refused.status_code == 400
        jsonschema.validate(refused.json(), schemas["Error"])


@pytest.mark.parametrize(
    ("lines", "length", "status"),
    [
        (["Content-Type: text/csv"], 5, 415),
        (["Content-Type: application/json; charset=latin-1"], 5, 415),
        (["Content-Type: application/json; charset=UTF-8"], 2, 400),
        (["Content-Encoding: gzip"], 5, 415),
        (["Host: evil.example"], 5, 421),
        (["Host: evil.example:80@localhost"], 5, 421),
        (["Host: 127.0.0.1:1"], 2, 400),
        (["Host: [::1]:5001"], 2, 400),
        (["Content-Type: application/json", "Content-Type: application/json"], 5, 400),
        ([], 12_000_001, 413),
        ([], 10**15, 413),
        (["Expect: 100-continue"], 12_000_001, 413),
        (["Transfer-Encoding: gzip"], None, 400),
        (["X: " + "a" * 600_000], 5, 400),
        (["X Y: 1"], 5, 400),
    ],
)
def test_what_the_headers_alone_are_refused_for(server, lines, length, status):
    with server.raw(head(length, *lines) + (b"[]" if length == 2 else b"")) as connection:
        found, headers, content = answer(connection)
    assert found == status
    assert headers["content-type"] == "application/json"
    assert set(json.loads(content)) == {"error_code", "message"} and len(content) < 300


def test_paths_and_methods(server):
    assert (
        server.get("/").status_code == server.get("/docs").status_code == server.get("/invocations/").status_code == 404
    )
    refused = server.get("/invocations?image=secret")
    assert refused.status_code == 405 and refused.headers["Allow"] == "POST"
    assert requests.post(server.url + "/ready", timeout=9).headers["Allow"] == "GET, HEAD"
    assert requests.request("BREW", server.url + "/health", timeout=9).status_code == 405


def test_chunks_are_counted_and_the_refusal_can_be_read(server):
    def chunks():
        for _ in range(40):
            yield b"A" * 1_000_000

    headers = {"Content-Type": "application/json"}
    refused = requests.post(server.url + "/invocations", chunks(), headers=headers, timeout=30)
    assert refused.status_code == 413 and "12 MB" in refused.json()["message"]
    refused = server.ask(b"A" * 30_000_000)
    assert refused.status_code == 413


def test_a_slow_body_is_refused_in_time_and_keeps_nobody_waiting(server):
    began = time.perf_counter()
    with server.raw(head(1000) + b"{") as connection:
        for _ in range(4):
            time.sleep(0.25)
            connection.sendall(b" ")
            assert server.ask(good(PNG)).status_code == 200
        status, headers, _ = answer(connection)
    assert status == 408 and headers["connection"] == "close"
    assert 1.9 < time.perf_counter() - began < 10


def test_headers_without_end_and_silent_connections_are_closed(server):
    began = time.perf_counter()
    with server.raw() as silent, server.raw(b"POST /invocations HTTP/1.1\r\n") as slow:
        with contextlib.suppress(OSError):
            for _ in range(30):
                time.sleep(0.1)
                slow.sendall(b"X: y\r\n")
        assert answer(silent)[0] == 0
        with contextlib.suppress(ConnectionError):
            assert answer(slow)[0] == 0
    assert time.perf_counter() - began < 10


def assert_refused_well(answered, body):
    text = answered.text
    assert 400 <= answered.status_code < 500, (answered.status_code, text)
    assert len(answered.content) <= 1000
    assert set(answered.json()) == {"error_code", "message"}
    message = answered.json()["message"]
    assert message.endswith(".") and "\n" not in message
    assert not re.search(r"Traceback|File \"|/(work|tmp|home|usr|root|var)/|site-packages|\.py\b", text)
    if len(body) > 40:
        assert not any(body[at : at + 30].decode("latin-1") in text for at in range(0, min(len(body), 3000) - 30, 10))


def test_bad_bodies_are_refused_with_a_sentence(server):
    with requests.Session() as session:
        for body in (KINDS | LENIENT).values():
            assert_refused_well(server.ask(body, session), body)
    assert server.ask(good(PNG)).status_code == 200


def test_bodies_made_up_by_chance_are_never_an_error_of_the_server(server):
    with requests.Session() as session:

        @settings(
            max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(GENERATED)
        def ask(body):
            answered = server.ask(body, session)
            if answered.status_code != 200:
                assert_refused_well(answered, body)

        ask()
    assert server.ask(good(PNG)).status_code == 200


def test_the_log_and_the_metrics_hold_no_content(server):
    server.ask(KINDS["file: dicom: jpeg cut short"])  # pydicom logs a traceback
    server.ask(good(PNG), X_Patient="Jane Roe")
    requests.post(f"{server.url}/invocations?name=Jane+Roe", json={"Jane Roe": 1}, timeout=9)
    server.get("/Jane-Roe")
    log, metrics = server.log.read_text(), server.get("/metrics").text
    for text in (log, metrics):
        assert "Jane" not in text and IMAGE[:40] not in text and base64.b64encode(PNG).decode()[-40:] not in text
    since = log[log.index('"event": "serving"') :].splitlines()[1:]
    assert all(json.loads(line)["time"] for line in since)  # nothing in a library's own words
    lines = [line for line in server.lines() if line["event"] == "request"]
    assert {"time", "method", "path", "status", "ms", "rows", "version"} <= set(lines[-1])
    assert lines[-1]["path"] in ("other", "/metrics")
    assert 'ultrasound_model{model_version="breast-ultrasound/1"' in metrics
    assert "ultrasound_request_seconds_bucket" in metrics


# A model that takes as long as it is told to, for what is about time, and about whose code it is.


@pytest.fixture(scope="module")
def tiny_project(tmp_path_factory):
    """A project with versions of the model `tiny`: 1 is good, 2 does not load, 3 was changed, 4 takes long to load."""
    folder = tmp_path_factory.mktemp("tiny")
    project = copy_project(folder / "project", SMALL)
    (project / "build").mkdir()
    code = folder / "code"
    (code / "ultrasound").mkdir(parents=True)
    (code / "ultrasound/__init__.py").write_text('WHOSE = "the model\'s"\n')
    signature = ModelSignature(
        Schema([ColSpec("string", "image")]), Schema([ColSpec("string", "code")]),
        ParamSchema([ParamSpec("explain", "boolean", False)]),
    )  # fmt: skip
    with tracking_store(project):
        client = mlflow.MlflowClient()
        experiment = client.create_experiment("tiny", artifact_location=(project / "artifacts").as_uri())
        for number in (1, 2, 3, 4):
            file = folder / f"tiny{number}.py"
            own = f"BROKEN, LOADING = {number == 2}, {30 * (number == 4)}\n\nclass"
            file.write_text(textwrap.dedent(TINY).replace("class", own))
            with mlflow.start_run(experiment_id=experiment):
                logged = mlflow.pyfunc.log_model(
                    name="model", python_model=str(file), code_paths=[str(code / "ultrasound")], signature=signature,
                    pip_requirements=["mlflow"],
                )  # fmt: skip
            tags = {"manifest": "0" * 64} if number == 3 else {}
            mlflow.register_model(logged.model_uri, "tiny", tags=tags)
        client.set_registered_model_alias("tiny", "champion", "1")
    return project


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A running server of two real versions that have learnt nothing, made in seconds; and its project."""
    project = copy_project(tmp_path_factory.mktemp("untrained") / "project", SMALL)
    (project / "build").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 64, 64)).astype(np.uint8)
    calibrated = Calibration(1.0, "malignant", 0.3, (0.2, 0.2, 0.2), 0.95, 0.9, 30, "of a test")
    with tracking_store(project):
        client = mlflow.MlflowClient()
        experiment = client.create_experiment("untrained", artifact_location=(project / "artifacts").as_uri())
        for _ in range(2):
            model = Classifier(
                Ensemble([Network("test_resnet", 3, 16, 0.0)], flip=False).eval(), ("benign", "malignant", "normal"),
                Preparation(64, fit="pad"), "0" * 16, calibrated, resemblance.fit(pixels, np.arange(30)),
            )  # fmt: skip
            with mlflow.start_run(experiment_id=experiment) as run:
                models.log(model)
            tags = client.get_run(run.info.run_id).data.tags
            own = {store.MANIFEST_TAG: tags[store.MANIFEST_TAG], "run_id": run.info.run_id}
            mlflow.register_model(tags[store.MODEL_TAG], NAME, tags=own)
        client.set_registered_model_alias(NAME, "champion", "1")
    with guarded(project, "--serve.poll", "0.5") as running:
        yield running, project


TINY_OPTIONS = (
    "--register.name=tiny", "--serve.at_once=1", "--serve.queue=2", "--serve.poll=0.3", "--serve.drain=5",
    "--serve.patience=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tiny_project):
    with guarded(tiny_project, *TINY_OPTIONS, ULTRASOUND_TOKEN=TOKEN) as running:
        yield running


def seconds(*each):
    return json.dumps({"inputs": [str(one) for one in each]}).encode()


def timed(server, body):
    began = time.perf_counter()
    answered = server.ask(body, Authorization=f"Bearer {TOKEN}")
    return answered, time.perf_counter() - began


def gauge(server, name):
    text = server.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
    return float(re.search(rf"^ultrasound_requests_{name} (\S+)$", text, re.MULTILINE).group(1))


def wait_for(server, name, value):
    end = time.monotonic() + 60
    while gauge(server, name) != value:
        assert time.monotonic() < end, (name, gauge(server, name))
        time.sleep(0.02)


def allowed(server, body):
    return server.ask(body, Authorization=f"Bearer {TOKEN}")


def test_the_code_that_answers_is_the_model_s(tiny):
    [row] = allowed(tiny, seconds(0)).json()["predictions"]
    file, _, whose = row["code"].partition(" ")
    assert whose == "the model's" and "ultrasound-serve-" in file and file.endswith("code/ultrasound/__init__.py")


def test_without_the_token_nothing_is_told(tiny):
    for header in ("", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}s"):
        headers = {"Authorization": header} if header else {}
        refused = tiny.ask(seconds(0), **headers)
        assert refused.status_code == 401 and refused.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/metrics", "/openapi.json", "/ping", "/no"):
            assert tiny.get(path, headers=headers).status_code == 401
    assert tiny.get("/health").status_code == tiny.get("/ready").status_code == 200
    described = tiny.get("/openapi.json", headers={"Authorization": f"bearer {TOKEN}"}).json()
    assert described["components"]["securitySchemes"] and described["paths"]["/invocations"]["post"]["security"]
    everyone = [*tiny.workers(), psutil.Process(tiny.process.pid)]
    assert not any(TOKEN in part for process in everyone for part in process.cmdline())
    assert TOKEN not in tiny.log.read_text()


def test_a_failing_model_is_told_in_the_log_alone(tiny):
    refused = allowed(tiny, seconds("fail"))
    assert refused.status_code == 500 and refused.json()["message"] == "The model failed on this request."
    assert "secret" not in refused.text + tiny.log.read_text()
    assert any(line["event"] == "failure" and line["type"] == "RuntimeError" for line in tiny.lines())


def test_who_leaves_the_queue_gives_the_place_up(tiny):
    with ThreadPoolExecutor() as pool:
        running = pool.submit(allowed, tiny, seconds(4))
        wait_for(tiny, "computing", 1)
        body = seconds(10)
        waiting = [tiny.raw(head(len(body), PASS) + body) for _ in range(2)]
        wait_for(tiny, "waiting", 2)
        assert allowed(tiny, seconds(0)).status_code == 429
        for connection in waiting:
            connection.close()
        wait_for(tiny, "waiting", 0)
        began = time.perf_counter()
        assert allowed(tiny, seconds(0)).status_code == 200
        assert time.perf_counter() - began < 9  # none of the ten seconds of those who left are spent on them
        assert running.result().status_code == 200


def test_who_leaves_while_it_is_computed_frees_the_place_when_that_ends(tiny):
    body = seconds(3)
    with tiny.raw(head(len(body), PASS) + body):
        wait_for(tiny, "computing", 1)
    began = time.perf_counter()
    assert allowed(tiny, seconds(0)).status_code == 200
    assert time.perf_counter() - began > 0.2  # never two at once
    assert gauge(tiny, "computing") == 0


def test_no_more_connections_than_there_is_room_for(tiny):
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(tiny.raw())
        assert allowed(tiny, seconds(0)).status_code == 200  # the oldest silent one has made room
        [worker] = tiny.workers()
        assert len([link for link in worker.net_connections() if link.status == "ESTABLISHED"]) <= 256


def test_a_version_that_does_not_load_or_was_changed_is_not_served(tiny_project, tiny):
    client = mlflow.MlflowClient(f"sqlite:///{tiny_project}/mlflow.db")
    for number, reason in (("2", "ImportError"), ("3", "changed after it was registered")):
        client.set_registered_model_alias("tiny", "champion", number)
        end = time.monotonic() + 300
        while not (
            told := [line for line in tiny.lines() if line.get("reason") and line["version"] == f"tiny/{number}"]
        ):
            assert time.monotonic() < end, tiny.log.read_text()
            time.sleep(0.1)
        assert reason in told[0]["reason"] and told[0]["goes_on"] == "tiny/1"
        assert tiny.get("/ready").json()["model_version"] == "tiny/1"
        assert allowed(tiny, seconds(0)).status_code == 200
    client.set_registered_model_alias("tiny", "champion", "1")


def test_a_version_that_is_withdrawn_while_it_is_loaded_never_answers(tiny_project, tiny):
    client = mlflow.MlflowClient(f"sqlite:///{tiny_project}/mlflow.db")
    [current] = tiny.workers()
    client.set_registered_model_alias("tiny", "champion", "4")
    end = time.monotonic() + 300
    while len(tiny.workers()) < 2:
        assert time.monotonic() < end, tiny.log.read_text()
        time.sleep(0.05)
    client.set_registered_model_alias("tiny", "champion", "1")
    while tiny.workers() != [current]:
        assert time.monotonic() < end, tiny.log.read_text()
        time.sleep(0.05)
    told = [line for line in tiny.lines() if line.get("version") == "tiny/4"]
    assert [line.get("reason") for line in told] == ["the alias has moved on"]
    assert tiny.get("/ready").json()["model_version"] == "tiny/1"


@pytest.mark.alone
def test_an_attack_costs_little_and_is_over_when_it_ends(tiny):
    [worker] = tiny.workers()
    assert allowed(tiny, seconds(0)).status_code == 200
    before = worker.memory_info().rss
    peak, refusals, stop = [before], [], threading.Event()

    def watch():
        while not stop.wait(0.05):
            peak[0] = max(peak[0], worker.memory_info().rss)

    def hang(number):
        with contextlib.suppress(OSError), tiny.raw(head(11_000_000, PASS)) as connection:
            for _ in range(11 if number % 3 else 1):
                connection.sendall(b"A" * 900_000)
            if number % 2:
                stop.wait(3)

    def flood(_):
        began = time.perf_counter()
        with contextlib.suppress(OSError), tiny.raw(head(200_000_000, PASS)) as connection:
            status = answer(connection)[0]
            refusals.append((status, time.perf_counter() - began))
            for _ in range(200):
                connection.sendall(b"A" * 1_000_000)

    def drip(_):
        with contextlib.suppress(OSError), tiny.raw(head(10_000, PASS) + b"{") as connection:
            for _ in range(30):
                time.sleep(0.1)
                connection.sendall(b"A")

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(70) as pool:
        jobs = [pool.submit(hang, number) for number in range(30)]
        jobs += [pool.submit(flood, number) for number in range(5)] + [
            pool.submit(drip, number) for number in range(30)
        ]
        for job in jobs:
            job.result()
    ended = time.perf_counter()
    while allowed(tiny, seconds(0)).status_code != 200 and time.perf_counter() - ended < 60:
        time.sleep(0.1)
    assert time.perf_counter() - ended < 5
    stop.set()
    watcher.join()
    assert len(refusals) == 5 and statistics.median(took for _, took in refusals) < 0.1  # 70 clients share two cores
    assert {status for status, _ in refusals} <= {413, 503}
    assert peak[0] - before < 200_000_000
    assert tiny.workers() == [worker]


@pytest.mark.alone
def test_work_for_clients_that_have_left_is_given_up(untrained):
    server, _ = untrained
    buffer = io.BytesIO()
    Image.new("L", (5000, 5000), 90).save(buffer, "PNG")  # 25 megapixels in a few kB, a second of work with its map
    body = good(*[buffer.getvalue()] * 16, explain=True)
    [worker] = server.workers()
    assert server.ask(good(PNG, explain=True)).status_code == 200
    before, peak, stop = worker.memory_info().rss, [0], threading.Event()

    def watch():
        while not stop.wait(0.02):
            peak[0] = max(peak[0], worker.memory_info().rss)

    def leave(_):
        with server.raw(head(len(body)) + body):
            stop.wait(1)  # they are being computed

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(leave, range(8)))
    ended = time.perf_counter()
    answered = server.ask(good(PNG))
    took = time.perf_counter() - ended
    stop.set()
    watcher.join()
    assert answered.status_code == 200 and took < 5
    assert peak[0] - before < 200_000_000


@pytest.mark.alone
def test_what_is_too_much_is_refused_at_once(tiny):
    with ThreadPoolExecutor(3) as pool:
        first = [pool.submit(allowed, tiny, seconds(3)) for _ in range(3)]
        wait_for(tiny, "waiting", 2)
        refused = [timed(tiny, seconds(0)) for _ in range(30)]
        assert [job.result().status_code for job in first] == [200] * 3
    assert all(got.status_code == 429 and got.headers["Retry-After"] == "1" for got, _ in refused)
    assert np.quantile([took for _, took in refused], 0.9) < 0.1
    assert allowed(tiny, seconds(0)).status_code == 200


@pytest.mark.alone
def test_a_new_version_answers_within_a_minute(untrained):
    server, project = untrained
    assert server.ask(good(PNG)).json()["predictions"][0]["model_version"] == f"{NAME}/1"
    point(project, 2)
    began = time.monotonic()
    while server.ask(good(PNG)).json()["predictions"][0]["model_version"] != f"{NAME}/2":
        assert time.monotonic() - began < 60, server.log.read_text()[-2000:]
        time.sleep(0.1)


def test_a_child_that_dies_is_replaced_and_nobody_else_is_turned_away(tiny):
    [former] = tiny.workers()
    with ThreadPoolExecutor() as pool:
        lost = pool.submit(allowed, tiny, seconds(9))
        wait_for(tiny, "computing", 1)
        former.kill()
        assert isinstance(lost.exception(), requests.ConnectionError)
    assert allowed(tiny, seconds(0)).status_code == 200  # waits until there is another
    [now] = tiny.workers()
    assert now.pid != former.pid


def test_a_model_or_alias_that_is_missing_is_told(served):
    failed = ultrasound(served, "serve", "--serve.alias", "nobody", "--serve.port", str(free_port()), expect=1)
    [sentence] = failed.stderr.splitlines()
    assert "has no breast-ultrasound with the alias nobody" in sentence and "python -m ultrasound register" in sentence
    with tracking_store(served), pytest.raises(InputError, match="has no other with the alias champion"):
        serving_versions.resolve("other", "champion")


def test_bytecode_that_was_laid_beside_a_model_is_not_taken(served, tmp_path):
    with tracking_store(served):
        version = serving_versions.resolve("breast-ultrasound", "champion")
        uri = mlflow.MlflowClient().get_model_version_download_uri(version.name, version.number)
        stored = Path(mlflow.artifacts.download_artifacts(uri)) / "code/ultrasound/__pycache__"
        stored.mkdir(exist_ok=True)
        (stored / "laid.pyc").write_bytes(b"never to be run")
        try:
            model = serving_versions.fetch(version, tmp_path / "own")
        finally:
            (stored / "laid.pyc").unlink()
    assert (model / "code/ultrasound/errors.py").is_file() and not list(model.rglob("__pycache__"))


def test_a_port_that_is_taken_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"cannot listen on 127\.0\.0\.1, port \d+ \(Address already in use\)"):
            fleet.listen("127.0.0.1", taken.getsockname()[1])


# What changes or ends the servers stands last.


def test_the_alias_moves_under_load_and_no_request_fails(served, server):
    body, failed, versions, stop = good(PNG), [], [], threading.Event()

    def client():
        with requests.Session() as session:
            while not stop.is_set():
                try:
                    answered = server.ask(body, session)
                except requests.RequestException as error:
                    failed.append(repr(error))
                    continue
                if answered.status_code != 200:
                    failed.append(answered.text)
                else:
                    versions.append(answered.json()["predictions"][0]["model_version"])

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.5)
        point(served, 2)
        end = time.monotonic() + 300
        while set(versions[-8:]) != {"breast-ultrasound/2"}:
            assert time.monotonic() < end, server.log.read_text()[-2000:]
            time.sleep(0.1)
    finally:
        point(served, 1)
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert set(versions) == {"breast-ultrasound/1", "breast-ultrasound/2"}


def test_who_is_being_answered_when_it_stops_is_answered(tiny):
    [worker] = tiny.workers()
    folder = Path(worker.cwd())
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(allowed, tiny, seconds(1)) for _ in range(2)]
        wait_for(tiny, "waiting", 1)
        tiny.process.send_signal(signal.SIGTERM)
        assert [job.result().status_code for job in asked] == [200, 200]
    assert asked[1].result().headers["Connection"] == "close"
    assert tiny.process.wait(10) == 128 + signal.SIGTERM
    assert not worker.is_running() and not folder.parent.exists()


def worker_of(parent):
    """Its child that has a folder of its own, and that folder; None while there is none."""
    for child in parent.children():
        with contextlib.suppress(psutil.Error):  # other children are gone in a moment
            if (folder := Path(child.cwd())).parent.name.startswith("ultrasound-serve-"):
                return child, folder
    return None


def test_a_model_that_is_being_loaded_when_the_parent_is_killed_leaves_nothing(served):
    command = [sys.executable, "-m", "ultrasound", "serve", "--serve.port", str(free_port())]
    parent = psutil.Popen(command, cwd=served, env=environment(), stderr=subprocess.DEVNULL)
    end = time.monotonic() + 600
    try:
        while not (found := worker_of(parent)):
            assert parent.is_running() and time.monotonic() < end
            time.sleep(0.01)
        worker, folder = found
        while not any(folder.rglob("code/**/__pycache__")):
            assert worker.is_running() and time.monotonic() < end
            time.sleep(0.001)
    finally:
        parent.kill()
        parent.wait()
    worker.wait(60)
    assert not folder.parent.exists()


def test_no_orphan_when_the_parent_is_killed(server):
    workers = server.workers()
    _, folder = worker_of(psutil.Process(server.process.pid))
    server.process.kill()
    server.process.wait()
    for worker in workers:
        worker.wait(60)
    assert not folder.parent.exists()
