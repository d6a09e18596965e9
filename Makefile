# make quickstart   the whole path on this machine, in minutes        make test       the test-suite without its slow part
# make test-all     everything                                        make check      lint and types
# make test WORKERS=4  by four processes; each needs a core and 4 GB
# make chaos        200 kills over all ZeRO stages, 20 to 40 minutes
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
WORKERS ?= 2
# Images of containers set it, and each of the hundreds of processes of a test run then compiles all of our files again.
export PYTHONDONTWRITEBYTECODE =

.PHONY: quickstart test test-all check lint types chaos reference clean

quickstart: $(VENV)/.installed
	$(BIN)/pretrain quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS)

test-all: $(VENV)/.installed-dev
	TESTS_COLD=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) -m "slow or not slow"

check: lint types

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
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
