# Everything here works on a fresh machine with Python >= 3.11 and make; each target is idempotent.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo demo-train test test-all test-triton lint clean

setup: .venv/.ready

# The stamp depends on what decides the environment, so a second call costs nothing.
.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev,plots,zoo]'
	touch $@

demo: setup
	$(BIN)/tkpy demo

demo-train: setup
	$(BIN)/tkpy train based --preset mqar-small --curve

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

test-all: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The CPU backend on another Triton (3.6.0 and later): make test-triton VERSION=3.9.0
VERSION ?= 3.9.0
TESTS ?= tests/codegen/cpu
OTHER := .venv-triton-$(VERSION)

test-triton:
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	grep -v '^triton==' constraints.txt > $(OTHER)/constraints.txt
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OTHER)/constraints.txt -e '.[test]'
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps triton==$(VERSION)
	$(OTHER)/bin/python -m pytest -m 'not slow' -p no:cacheprovider $(TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-triton-* build dist *.egg-info
