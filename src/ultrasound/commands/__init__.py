"""One module a verb: read parameters, call the library, save. This file names the run-time paths they share."""

from pathlib import Path

DATA = Path("data")  # the published release, pinned by data.dvc
BUILD = Path("build")  # everything that a stage makes
CATALOG = BUILD / "catalog.csv"
VERIFIED = BUILD / "verified.json"  # of this machine, no output of a stage
SPLITS = BUILD / "splits.csv"
DUPLICATES = BUILD / "duplicates.csv"
TEST_SET = BUILD / "test_set.csv"
NNUNET = BUILD / "splits_final.json"
REPORT = BUILD / "data-report.html"
PREPARED = BUILD / "prepared"
CHECKPOINTS = BUILD / "checkpoints"  # a folder a run, removed when the run is finished

STAGES = {"data", "download", "split", "preprocess"}  # sections of params.yaml that DVC's stages read
