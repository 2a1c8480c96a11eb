# `make` alone lists the tasks. People, hooks and CI run the same ones. Needs Python 3.11+, make and a package index.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
RUN := . $(VENV)/bin/activate &&
READY := $(VENV)/.ready

help:  ## list the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(READY)  ## make the environment .venv from the lock

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet uv
	$(VENV)/bin/uv pip install --quiet --python $(VENV) -r requirements.txt -e . --no-deps
	@touch $@

demo: setup  ## the whole way on synthetic phantoms, offline, in build/demo
	$(RUN) python scripts/demo.py

test: setup  ## run the tests, through the real tools, made small
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not alone"
	$(RUN) python -m pytest -m alone

lint: setup  ## style, types, import rules
	$(RUN) ruff check . && ruff format --check . && mypy && lint-imports

lock: setup  ## pin the dependencies of pyproject.toml anew in requirements.txt
	$(RUN) uv pip compile --universal --quiet --upgrade --python-version 3.11 --no-emit-index-url --extra dev \
		pyproject.toml -o requirements.txt

data-card: setup  ## write the numbers of the data card and README anew (dvc repro, leakage)
	$(RUN) dvc repro && mlflow run . -e leakage --env-manager local && python scripts/data_card.py

recipes: setup  ## train the recipes that docs/results.md compares, on all folds (hours on a CPU), and write it anew
	$(RUN) python scripts/recipes.py

bench: setup  ## measure training, preparation and start-up, beside the machine's limit and timm's loader
	$(RUN) python scripts/bench.py

bench-search: setup  ## measure the search: overhead of a trial, and what stopping trials early saves
	$(RUN) python scripts/bench_search.py overhead && python scripts/bench_search.py pruning

bench-evaluation: setup  ## measure the evaluation of all images with the newest model, heat maps and report included
	$(RUN) python scripts/bench_evaluation.py

bench-duplicates: setup  ## measure the near-duplicate search: recall by kind of copy, and time by number of images
	$(RUN) python scripts/bench_duplicates.py copies && python scripts/bench_duplicates.py audit

bench-serve: setup  ## measure the guarded server, beside ONNX Runtime's bare pass and a torch model under MLflow's server
	$(RUN) python scripts/bench_serve.py

doctor: setup  ## say what this machine can do
	$(RUN) python -m ultrasound doctor

ui: setup  ## start the MLflow UI on http://127.0.0.1:5000
	@echo "runs: http://127.0.0.1:5000/#/experiments/0?workflowType=machine_learning"
	$(RUN) mlflow ui --workers 1 --no-serve-artifacts

serve: setup  ## serve the champion on http://127.0.0.1:5001, behind a guard; follows the alias
	$(RUN) python -m ultrasound serve

app: setup  ## serve the champion, and open the app on http://127.0.0.1:8501
	$(RUN) python -m ultrasound app --with-server

.PHONY: help setup demo test lint lock data-card recipes bench bench-search bench-evaluation bench-duplicates bench-serve doctor ui serve app
