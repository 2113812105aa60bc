# make demo, make test: either works first on a bare clone; the second time both are quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# For example TORCH_INDEX=https://download.pytorch.org/whl/cpu, which saves gigabytes on a machine without a GPU.
TORCH_INDEX ?=
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all lint types check cards install install-dev clean

demo: install
	$(BIN)/ttl demo

test: install-dev
	$(BIN)/python -m pytest -m "not slow and not install" --numprocesses logical --maxprocesses 4 --dist loadfile

test-all: install-dev
	$(BIN)/python -m pytest

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

check: lint types test

# The reference cards again, from the published figures beside them.
cards: install
	$(BIN)/python -m teenytinyllama.publishing.reference model_cards

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

# A torch that can already be imported is left alone: by the environment, through --system-site-packages.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	if $(PYTHON) -c 'import torch' 2>/dev/null; then $(PYTHON) -m venv --system-site-packages $(VENV); else $(PYTHON) -m venv $(VENV); fi

$(VENV)/torch: | $(VENV)/bin/python
	@$(BIN)/python -c 'import torch' 2>/dev/null || { echo "installing $(TORCH)"; $(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH); }
	@touch $@

$(VENV)/installed: pyproject.toml constraints.txt $(VENV)/torch
	@echo "installing teenytinyllama and what it needs into $(VENV) (about two minutes the first time)"
	@grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(PIP_INSTALL) -c $(VENV)/constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP_INSTALL) -c $(VENV)/constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
