import pytest

from ultrasound.errors import InputError
from ultrasound.inference import manifest


@pytest.fixture
def model(tmp_path):
    for name in ("MLmodel", "code/a.py", "artifacts/weights"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / manifest.FILE).write_text(manifest.make(tmp_path))
    return tmp_path


def test_a_model_as_it_was_saved_passes_whatever_is_noted_beside_it(model):
    for name in ("registered_model_meta", "model_card.md", "code/__pycache__/a.pyc"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("later")
    manifest.check(model)
    assert manifest.digest(manifest.make(model)) == manifest.digest((model / manifest.FILE).read_text())


@pytest.mark.parametrize("name", ["MLmodel", "code/a.py", "artifacts/weights"])
def test_every_changed_missing_or_added_file_is_named(model, name):
    before = (model / name).read_bytes()
    (model / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{name} of the model was changed"):
        manifest.check(model)
    (model / name).unlink()
    with pytest.raises(InputError, match=f"{name} of the model is missing"):
        manifest.check(model)
    (model / name).write_bytes(before)
    (model / name).with_name("more.py").write_text("")
    with pytest.raises(InputError, match=r"more\.py was added"):
        manifest.check(model)


def test_a_missing_or_damaged_list_is_told(model):
    (model / manifest.FILE).write_text("{")
    with pytest.raises(InputError, match="damaged"):
        manifest.check(model)
    (model / manifest.FILE).unlink()
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        manifest.check(model)
