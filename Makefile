# make quickstart   the whole path on this machine, in minutes        make test       the test-suite without its slow part
# make test-all     everything                                        make check      lint and types
# make chaos        200 kills over all ZeRO stages, 20 to 40 minutes
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: quickstart test test-all check chaos reference clean

quickstart: $(VENV)/.installed
	$(BIN)/pretrain quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "slow or not slow"

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

chaos: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.chaos --kills 200 --report benchmarks/results/chaos.md

reference: $(VENV)/.installed
	$(BIN)/python -m pretrain.config.reference > docs/reference/config.md
	$(BIN)/python -m tests.support.module_index > docs/modules.md

# torch comes first and alone: the other packages then find it, whatever build of it this machine's index offers.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[export]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) quickstart runs build *.egg-info
