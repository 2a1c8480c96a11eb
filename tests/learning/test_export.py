import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from ultrasound.errors import InputError
from ultrasound.inference.graph import Graph
from ultrasound.learning import export, heat
from ultrasound.learning.backbone import Network
from ultrasound.learning.classifier import Ensemble


def ensemble(name, members=1, *, flip=False):
    torch.manual_seed(0)
    networks = [Network(name, 3, 16, 0.1) for _ in range(members)]
    with torch.no_grad():  # logits far enough apart that a slip would show
        for network in networks:
            network.head[-1].weight.mul_(20)
    return Ensemble(networks, flip=flip).eval().requires_grad_(False)


def pixels(number, size):
    return np.random.default_rng(3).integers(0, 256, (number, size, size)).astype(np.uint8)


CASES = [
    ("test_resnet", 1, True, 64), ("test_efficientnet", 2, True, 96), ("test_efficientnet", 1, False, 96),
    ("test_vit", 1, True, 160),
]  # fmt: skip


@pytest.mark.parametrize(("name", "members", "flip", "size"), CASES)
def test_the_graph_answers_as_torch_does_for_any_number_of_images(tmp_path, name, members, flip, size):
    network = ensemble(name, members, flip=flip)
    with_heat = export.export(network, size, tmp_path)
    graph = Graph(tmp_path)
    assert with_heat is (name != "test_vit")
    for number in (1, 2, 5):
        images = pixels(number, size)
        with torch.no_grad():
            expected = network(torch.from_numpy(images)[:, None].float() / 255).numpy()
        logits, maps = graph.explained(images)
        np.testing.assert_allclose(logits, expected, atol=1e-4)
        np.testing.assert_array_equal(graph.answers(images), logits)
        assert (maps is not None) is with_heat
        if with_heat:
            for classes in (None, np.arange(number) % 3):
                _, torch_maps = heat.explain(network, images, classes)
                np.testing.assert_allclose(graph.explained(images, classes)[1], torch_maps, atol=1e-4)


def test_alone_a_pass_has_all_cores_in_company_half_of_them_and_everybody_gets_the_own_answer(tmp_path, monkeypatch):
    export.export(ensemble("test_resnet"), 64, tmp_path)
    graph = Graph(tmp_path)
    images, passes = pixels(26, 64), []
    expected = graph._network.run(["logits"], {"pixels": images})[0]
    half = graph._half.get_session_options().intra_op_num_threads
    assert half == max(os.cpu_count() // 2, 1) and graph._network.get_session_options().intra_op_num_threads == 0

    class Watched:
        broken = False

        def __init__(self, name):
            self.name, self.session = name, getattr(graph, name)
            monkeypatch.setattr(graph, name, self)

        def run(self, names, given):
            passes.append(self.name)
            if self.broken:
                raise MemoryError
            return self.session.run(names, given)

    whole, half = Watched("_network"), Watched("_half")
    np.testing.assert_allclose(graph.answers(images[:2]), expected[:2], atol=1e-5)
    assert passes == ["_network"]
    numbers = [1, 2, 1, 1, 16, 1, 1, 3]
    ends = np.cumsum(numbers)
    free = threading.Event()
    for _ in range(2):  # keep both busy
        graph._passes.submit(free.wait)
    found = [graph.start(images[end - number : end]) for number, end in zip(numbers, ends, strict=True)]
    free.set()
    for number, end, logits in zip(numbers, ends, found, strict=True):
        np.testing.assert_allclose(logits.result(9), expected[end - number : end], atol=1e-5)
    assert "_half" in passes and passes[1] == "_half"
    whole.broken = half.broken = True
    for logits in [graph.start(images[:1]) for _ in range(3)]:
        with pytest.raises(MemoryError):
            logits.result(9)
    whole.broken = half.broken = False
    passes.clear()
    np.testing.assert_allclose(graph.answers(images[:1]), expected[:1], atol=1e-5)
    assert passes == ["_network"]  # a pass that failed is over, too


def test_it_holds_no_path_of_this_machine_and_leaves_the_network_as_it_was(tmp_path):
    network = ensemble("test_resnet")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export.export(network, 64, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        assert b"/site-packages/" not in content and b"/src/ultrasound" not in content


def test_a_graph_that_answers_otherwise_is_refused(tmp_path, monkeypatch):
    """A network whose answer depends on what tracing cannot see: the sum of the pixels, in Python."""

    class Changing(Ensemble):
        def forward(self, images):
            return super().forward(images) * (1.5 if float(images.sum()) > 0 else 1.0)

    network = ensemble("test_resnet")
    broken = Changing(network.members, flip=False).eval()
    monkeypatch.setattr(export, "_on_cpu", lambda network: network)
    with pytest.raises(InputError, match=r"answers otherwise than torch, by up to .* choose another model\.name"):
        export.export(broken, 64, tmp_path)


def test_missing_and_damaged_graphs_are_named(tmp_path):
    with pytest.raises(InputError, match=r"network\.onnx is missing"):
        Graph(tmp_path)
    (tmp_path / "network.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"network\.onnx is damaged"):
        Graph(tmp_path)


def test_onnx_runtime_sends_no_telemetry_and_needs_no_torch(tmp_path):
    export.export(ensemble("test_resnet"), 64, tmp_path)
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom ultrasound.inference.graph import Graph\n"
        "import os; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
        "Graph(Path(sys.argv[1])).explained(np.zeros((1, 64, 64), np.uint8))\n"
        "print('torch' in sys.modules, sorted(str(f) for f in Path.home().rglob('*.ses')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": "src", "HOME": str(tmp_path), "PATH": ""},
    )  # fmt: skip
    assert done.stdout.strip() == "False []", done.stderr
