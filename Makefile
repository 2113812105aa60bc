# make demo, make test: either works first on a bare clone; the second time both are quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# For example TORCH_INDEX=https://download.pytorch.org/whl/cpu, which saves gigabytes on a machine without a GPU.
TORCH_INDEX ?=
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Other programs that read what we write. llama.cpp is built from source, in minutes, so its wheel is kept; not for this
# processor alone: AMX is announced in machines that do not allow it, and a wheel in a home folder meets several machines.
WHEELS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/teenytinyllama/wheels
LLAMA_CPP := $(shell grep '^llama_cpp_python==' constraints.txt)
LLAMA_CPP_WHEEL = $(WHEELS)/$(subst ==,-,$(LLAMA_CPP))-*.whl
OTHER := .venv-transformers4
# Alone in a folder: where torchao is installed every process that loads a model imports it, and it warns.
TORCHAO := .torchao
OTHER_PYTHON := $(OTHER)/bin/python

.PHONY: demo test test-all torture fuzz lint types check cards docs install install-dev other-tools clean

demo: install
	$(BIN)/ttl demo

test: install-dev
	$(BIN)/python -m pytest -m "not slow and not install and not other_tools" --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-all: install-dev
	$(BIN)/python -m pytest

# Faults at random, one after the other: kills, signals, full disks, damaged files. Can be stopped and gone on with;
# what was tried stands in build/torture/results.jsonl, and as a table at the end.
torture: install-dev
	$(BIN)/python tests/faults/torture.py $(or $(N),200) --fixed

# So many cases of bad input, in all: a later call goes on where one was stopped. Faults and counts are in .fuzz/.
fuzz: install-dev
	$(BIN)/python tests/fuzz.py $(or $(N),10000)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

check: lint types test

# The reference cards again, from the published figures beside them.
cards: install
	$(BIN)/python -m teenytinyllama.publishing.card model_cards

# The site, both languages, strictly and without network: build/site. Addresses of web and repository: docs/site/build.py.
docs: install-dev
	$(BIN)/python docs/site/build.py $(if $(SITE_URL),--site_url $(SITE_URL))

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

# For the tests marked other_tools.
other-tools: $(VENV)/installed-llama-cpp $(OTHER)/installed $(TORCHAO)/installed

$(VENV)/installed-llama-cpp: $(VENV)/installed-dev
	ls $(LLAMA_CPP_WHEEL) 2>/dev/null || { echo "building $(LLAMA_CPP) (about eight minutes, once)"; \
	  CMAKE_ARGS=-DGGML_NATIVE=OFF $(BIN)/python -m pip wheel --no-cache-dir --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEELS) $(LLAMA_CPP); }
	$(PIP_INSTALL) -c $(VENV)/constraints.txt --find-links $(WHEELS) -e '.[gguf,serve]'
	@touch $@

$(TORCHAO)/installed: constraints.txt $(VENV)/installed-dev
	$(PIP_INSTALL) --no-deps --upgrade --target $(TORCHAO) $(shell grep '^torchao==' constraints.txt)
	@touch $@

# Its own packages come first on its path; torch, peft and the rest come from the first environment, at the end of it.
$(OTHER)/installed: $(VENV)/installed-dev
	$(BIN)/python -m venv --clear $(OTHER)
	$(OTHER_PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps 'transformers==4.57.*' 'huggingface_hub>=0.34,<1' 'tokenizers>=0.22,<0.23.1'
	$(BIN)/python -c 'import sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")' > \
	  "$$($(OTHER_PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/first_environment.pth"
	$(OTHER_PYTHON) -c 'import torch, peft, transformers; assert transformers.__version__.startswith("4.57."), transformers.__version__'
	@touch $@

clean:
	rm -rf $(VENV) $(OTHER) $(TORCHAO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
