# Everything runs in .venv, which is made once and kept until pyproject.toml changes.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0
# The first interpreter that Esper supports; give PYTHON=... for another.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)
PYTEST_ARGS ?= -n 2 --dist worksteal

.PHONY: all demo test zoo aot lint format types contracts bench clean

all: lint types contracts test

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.13 is needed and was not found: give PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q -e '.[cpu,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m examples.demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not zoo" $(PYTEST_ARGS)

# Every model of the zoo through the whole protocol.
zoo: $(STAMP)
	$(BIN)/python -m pytest tests/zoo $(PYTEST_ARGS)

# Every kernel in every shipped configuration, compiled for sm_80 and sm_90; needs no GPU.
aot: $(STAMP)
	$(BIN)/python -m benchmarks aot

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV)
