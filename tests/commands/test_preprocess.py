"""The preprocess stage through the real `dvc repro`."""

import shutil
from pathlib import Path

from tests.conftest import run_in, ultrasound
from ultrasound.images import prepared


def test_another_size_is_prepared_anew_and_the_first_comes_back_from_the_cache(project: Path, tmp_path: Path):
    """DVC's run cache leaves out what is named `size` where it compares parameters: it gave arrays of another size."""
    folder = tmp_path / "project"
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns("mlruns", "mlflow.db*", "checkpoints"))
    text = (folder / "params.yaml").read_text()
    for size, said in ((48, "48x48 pixels"), (64, "is cached - skipping run"), (48, "is cached - skipping run")):
        (folder / "params.yaml").write_text(text.replace("size: 64", f"size: {size}"))
        if size == 48 and "cached" not in said:
            refused = ultrasound(folder, "train", expect=1)
            assert "preprocess.size is 48, but build/ was made with 64: run `dvc repro`" in refused.stderr
        assert said in run_in(folder, "dvc", "repro", "preprocess").stdout
        made = prepared.read(folder / "build/prepared")
        assert made.images.shape[1:] == made.masks.shape[1:] == (size, size)
        assert made.preparation.size == size
