"""Bodies before they reach MLflow's app: what passes, what is refused with which sentence, and at what cost."""

import asyncio
import json
import time
import tracemalloc

import pytest
from hypothesis import given, settings

from tests.bad_bodies import BROKEN, CELLS, GENERATED, IMAGE, KINDS, LENIENT, PNG, SHAPES, good, split
from ultrasound.serving import bodies
from ultrasound.serving.bodies import GoneError, Memory, RefusalError, Shape, parse

SHAPE = Shape("image", {"explain": "boolean"})


def said(body, shape=SHAPE):
    with pytest.raises(RefusalError) as refused:
        parse(body, shape)
    assert refused.value.status == 400
    return str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        split([[IMAGE], [IMAGE]]),
        split([[IMAGE], [IMAGE]], index=[0, 1]),
        {"dataframe_records": [{"image": IMAGE}, {"image": IMAGE}]},
        {"instances": [IMAGE, IMAGE]},
        {"instances": [{"image": IMAGE}, {"image": IMAGE}]},
        {"inputs": [IMAGE, IMAGE]},
        {"inputs": [{"image": IMAGE}, {"image": IMAGE}]},
        {"inputs": {"image": [IMAGE, IMAGE]}, "params": {"explain": True}},
    ],
)
def test_every_form_of_mlflow_passes(content):
    for text in (json.dumps(content), json.dumps(content, indent=2), json.dumps(content).replace("/", r"\/")):
        assert len(parse(text.encode(), SHAPE)[0]) == 2


@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith(("body:", "shape:", "cell:"))])
def test_what_is_no_request_is_refused_with_a_sentence(name):
    if name in ("shape: split: 17 rows",):  # how many images there may be is for the model to say
        assert len(parse(KINDS[name], SHAPE)[0]) == 17
        return
    sentence = said(KINDS[name])
    assert sentence[0].isupper() or sentence.split()[0].removesuffix(".") in (*bodies.FORMS, "params")
    assert sentence.endswith(".") and len(sentence) < 200


def test_sentences_say_what_is_wrong():
    assert len(BROKEN) + len(SHAPES) + len(CELLS) > 100
    assert said(b"{") == "The request is not valid JSON."
    assert said(KINDS["body: twice"]) == "The request is not valid JSON."
    assert said(KINDS["cell: null"]) == "Image 1 must be a base64 string."
    assert said(KINDS["shape: explain: a string"]) == "The parameter explain must be of type boolean."
    assert said(good(PNG, threshold=0)) == "params may hold explain, and nothing else."
    assert said(good(PNG, explain=1)) == "The parameter explain must be of type boolean."
    assert said(good(PNG, explain=True), Shape("image", {})) == "params may hold nothing, and nothing else."
    assert "twice" in said(LENIENT["a key twice"])
    assert "brackets" in said(b'{"inputs":' + b"[" * 300) or "lists" in said(b'{"inputs":' + b"[" * 300)
    assert "strings" in said(json.dumps({"inputs": ["a"] * 1000}).encode())
    assert "little else" in said(json.dumps({"inputs": list(range(100_000))}).encode())


@pytest.mark.parametrize("name", LENIENT)
def test_what_mlflow_overlooks_is_refused_too(name):
    said(LENIENT[name])


def test_a_key_by_its_escapes_is_the_same_key():
    assert len(parse(good(PNG).replace(b'"image"', rb'"\u0069mage"'), SHAPE)[0]) == 1
    doubled = b'{"inputs": [{"image": "a", "\\u0069mage": "b"}]}'
    assert "twice" in said(doubled)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(GENERATED)
def test_whatever_is_made_up_passes_or_is_refused(body):
    try:
        rows, _ = parse(body, SHAPE)
    except RefusalError:
        return
    content = json.loads(body)
    [form] = set(content) & set(bodies.FORMS)
    table = content[form]
    cells = table.get("data", table.get("image")) if isinstance(table, dict) else table
    plain = [cell["image"] if isinstance(cell, dict) else cell[0] if isinstance(cell, list) else cell for cell in cells]
    assert plain == rows != []


@pytest.mark.parametrize(
    "body",
    [b'{"inputs": [' + b"[]," * 4_000_000 + b"1]}", b'{"' + b'a":1,"' * 1_700_000 + b'":1}', b"[" * 12_000_000,
     b'{"inputs": ["' + b'\\"' * 5_900_000 + b'"]}', b'{"inputs": [' + b" " * 11_900_000 + b"]}"],
)  # fmt: skip
def test_a_body_made_of_structure_costs_next_to_nothing(body):
    tracemalloc.start()
    said(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(body) + 2_000_000  # a copy of one piece at most, no objects


@pytest.mark.alone
def test_a_body_of_300_kb_takes_a_fraction_of_a_millisecond():
    body = good(bytes(range(256)) * 880)
    assert len(body) > 300_000
    times = []
    for _ in range(200):
        began = time.perf_counter()
        parse(body, SHAPE)
        times.append(time.perf_counter() - began)
    assert sorted(times)[100] < 0.0005


def messages(*pieces, end=False):
    """A `receive` that gives these pieces and then waits, or says that the client left."""
    rest = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]

    async def receive():
        if rest:
            return rest.pop(0)
        if end:
            return {"type": "http.disconnect"}
        return await asyncio.Event().wait()

    return receive


def read(receive, memory, patience=5.0):
    async def run():
        with memory.share() as take:
            return await bodies.read(receive, take, patience)

    return asyncio.run(run())


def test_reading_ends_in_time_and_within_the_limits():
    memory = Memory()
    with pytest.raises(RefusalError, match=r"within 0\.05 seconds") as slow:
        read(messages(b"{"), memory, 0.05)
    assert slow.value.status == 408
    with pytest.raises(RefusalError, match="larger than 12 MB") as large:
        read(messages(*[bytes(1_000_000)] * 13), memory)
    assert large.value.status == 413
    with pytest.raises(GoneError):
        read(messages(b"{", end=True), memory)
    with pytest.raises(RefusalError) as crowded:
        read(messages(bytes(900), bytes(200)), Memory(most=1000))
    assert crowded.value.status == 503 and crowded.value.headers == ((b"retry-after", b"1"),)
    assert memory.held == 0


def test_what_a_body_holds_is_free_again_after_it():
    memory = Memory(most=1000)
    with memory.share() as take:
        take(600)
        with memory.share() as other, pytest.raises(RefusalError):
            other(600)
        assert memory.held == 600
    assert memory.held == 0


def test_long_texts_are_left_to_the_model():
    assert len(parse(good(b"no image" * 100), SHAPE)[0]) == 1
    for wide in ("é" * 5000, "\U0001f600" * 5000):
        assert said(json.dumps({"inputs": [IMAGE, wide]}).encode()) == "Image 2 is not valid base64."
