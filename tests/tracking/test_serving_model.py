"""The served model by itself: how many images it answers at once, and that it stops for who has left."""

import base64
import io
from types import SimpleNamespace

import pytest
from PIL import Image

from ultrasound.images.preparation import Preparation
from ultrasound.inference.predictor import decoded
from ultrasound.tracking import serving_model


def image(level):
    buffer = io.BytesIO()
    Image.new("L", (120, 100), level).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def model(tmp_path, monkeypatch):
    """The served model without networks: an answer is the image's level, and what was asked for together is noted."""
    together = []

    def answers(images, **params):
        together.append(len(images))
        return [{"level": int(each.pixels.max()), **params} for each in images]

    def of_levels(content, name):
        return decoded(Preparation(32, fit="pad"), content, name)

    monkeypatch.setattr(serving_model.manifest, "check", lambda folder: None)
    monkeypatch.setattr(
        serving_model.predictor, "load", lambda folder, version: SimpleNamespace(answers=answers, decoded=of_levels)
    )
    served = serving_model.ServedModel()
    served.load_context(SimpleNamespace(artifacts={"classifier": str(tmp_path / "artifacts/classifier")}))
    return served, together


def test_rows_are_answered_in_their_order_two_at_once(model):
    served, together = model
    rows = {"image": [image(level) for level in (10, 20, 30, 40, 50)]}
    found = served.predict(None, rows, {"explain": True})
    assert found == [{"level": level, "explain": True} for level in (10, 20, 30, 40, 50)]
    assert together == [2, 2, 1]


def test_nothing_more_is_computed_for_who_has_left(model):
    served, together = model
    rows = {"image": [image(10)] * 6}
    with pytest.raises(serving_model.LeftError):
        served.predict(lambda: bool(together), rows)  # leaves while the first two are answered
    assert together == [2]
    together.clear()
    with pytest.raises(serving_model.LeftError):
        served.predict(lambda: True, rows)  # has left before anything was decoded
    assert together == []


def test_a_bad_row_is_told_before_any_is_answered(model):
    served, together = model
    with pytest.raises(serving_model.BadRequest, match=r"Image 3 is not valid base64\."):
        served.predict(None, {"image": [image(1), image(2), "?"]})
    assert together == []
