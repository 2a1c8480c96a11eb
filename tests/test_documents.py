"""README and the project must say the same."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import PROJECT
from ultrasound import params

README = (PROJECT / "README.md").read_text()
DOCUMENTS = [PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "MODEL_CARD.md")] + sorted(
    (PROJECT / "docs").rglob("*.md")
)


def test_every_make_task_exists():
    makefile = (PROJECT / "Makefile").read_text()
    for document in DOCUMENTS:
        for task in re.findall(r"(?:`|^|\s)make ([a-z][a-z-]*)(?=`|\s{2,}|$| &&)", document.read_text(), re.MULTILINE):
            assert re.search(rf"^{task}:", makefile, re.MULTILINE), f"{document.name}: make {task}"


def test_every_entry_point_and_parameter_exists():
    entry_points = yaml.safe_load((PROJECT / "MLproject").read_text())["entry_points"]
    keys = {key for key, _, _ in params.known()}
    for document in DOCUMENTS:
        text = document.read_text()
        assert set(re.findall(r"mlflow run \. -e (\w+)", text)) <= set(entry_points), document
        assert set(re.findall(r"-P\s+([a-z]+\.[a-z_]+)=", text)) <= keys, document


def test_the_tree_is_true():
    tree = README.split("## What is where")[1].split("```")[1]
    folder = PROJECT
    for line in tree.strip().splitlines():
        name = line.split()[0]
        folder = folder if line.startswith("  ") else PROJECT
        assert (folder / name).exists(), name
        if name == "src/ultrasound/":
            folder = PROJECT / name
    listed = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}
    rooms = {path.stem if path.is_dir() else path.name for path in (PROJECT / "src/ultrasound").iterdir()}
    assert rooms - {"__init__.py", "__main__.py", "__pycache__", "errors.py"} == listed


def test_links_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_client_in_readme_is_the_one_that_is_tested():
    assert (PROJECT / "scripts/client.py").read_text().split('"""\n', 1)[1].strip() in README


def test_dvc_watches_every_parameter_of_its_stages():
    """As a section, or key by key where a section has one that DVC leaves out when it looks for earlier runs."""
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    for watched in (stage["params"] for stage in stages.values() if "params" in stage):
        for section in {key.partition(".")[0] for key in watched}:
            if section in watched:
                assert not {"size", "nfiles"} & set(params[section]), section
            else:
                assert {f"{section}.{key}" for key in params[section]} <= set(watched), section


def test_the_lock_names_no_index_and_holds_every_dependency():
    lock = (PROJECT / "requirements.txt").read_text()
    assert "http" not in re.sub(r"#.*|^[a-z0-9-]+==.*|^    .*", "", lock, flags=re.MULTILINE)
    assert "--index-url" not in lock
    assert "--find-links" not in lock
    pinned = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    project = (PROJECT / "pyproject.toml").read_text().split("[project.scripts]")[0]
    for name in re.findall(r'^  "([A-Za-z0-9-]+)', project, re.MULTILINE):
        assert name.lower() in pinned, name


def test_no_image_of_the_data_set_no_weights_and_no_machine_path_is_tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        path = Path(name)
        assert path.suffix not in {".pth", ".pt", ".safetensors", ".onnx", ".zip", ".npy", ".dcm", ".db"}, name
        assert path.suffix != ".png" or path.parts[0] == "docs", name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".cff", ".lock"}:
            assert not re.search(r"/(work|home|root)/[a-z]", (PROJECT / name).read_text()), name
