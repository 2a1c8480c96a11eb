import pytest

from tests.conftest import ultrasound


def lines(output):
    return {line.split()[1]: line for line in output.splitlines() if line.startswith(("ok", "FAIL"))}


def test_a_prepared_project_that_needs_no_hub_is_fine(project):
    found = lines(ultrasound(project, "doctor").stdout)
    assert set(found) == {"Python", "packages", "torch", "data", "mirrors", "weights", "tracking", "disk"}
    assert all(line.startswith("ok") for line in found.values())


@pytest.mark.parametrize(
    ("options", "variables", "failing"),
    [
        (["--model.weights", "nofile.pth"], {}, "weights"),
        (["--model.weights", "packaged", "--model.name", "resnet50"], {}, "weights"),
        (["--model.weights", "imagenet"], {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "nowhere"}, "weights"),
        (["--model.name", "resnt50", "--model.weights", "imagenet"], {"HF_ENDPOINT": "http://127.0.0.1:9"}, "weights"),
        (["--train.device", "cuda"], {"CUDA_VISIBLE_DEVICES": ""}, "torch"),
        ([], {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "tracking"),
    ],
)
def test_what_stands_in_the_way_of_the_main_job_is_told_in_time(project, options, variables, failing):
    hub = "HF_ENDPOINT" in variables  # huggingface_hub reads it at its import
    done = ultrasound(project, "doctor", *options, **variables, expect=1, timeout=240, new=hub)
    assert [name for name, line in lines(done.stdout).items() if line.startswith("FAIL")] == [failing]
    assert f"see {failing} above" in done.stderr


def test_missing_data_and_an_archive_that_is_not_there(fresh, tmp_path):
    file = fresh / "params.yaml"
    text = file.read_text().replace("source: phantom", "source: busi")
    file.write_text(text)
    done = ultrasound(fresh, "doctor", BUSI_ARCHIVE=str(tmp_path / "nowhere.zip"), expect=1)
    assert "names no file" in lines(done.stdout)["data"]
