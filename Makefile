# Everything here works on a fresh machine with Python >= 3.11 and make; each target is idempotent.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-all lint clean

setup: .venv/.ready

# The stamp depends on what decides the environment, so a second call costs nothing.
.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev,plots]'
	touch $@

demo: setup
	$(BIN)/tkpy demo

test: setup
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-all: setup
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info
