# Set-up and checks; everything runs in .venv, which is made if it is missing. It needs Python 3.11 or newer
# with its module venv (on Debian and Ubuntu: sudo apt install make python3-venv), and some 6 GB of disk.
PYTHON ?= python3
BIN := .venv/bin
INSTALL = @echo "Installing into .venv, some minutes of silence ..." && $(BIN)/python -m pip install -q -e
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow lint docs

demo: .venv/examples
	@$(BIN)/python examples/quickstart/plot_wrong_labels.py

test: .venv/test  # a process and a thread for each core: more threads would wait for each other
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test-slow: .venv/test
	$(BIN)/python -m pytest -m slow

docs: .venv/docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/bin/python:
	$(PYTHON) -m venv .venv || { rm -rf .venv; false; }

.venv/examples: .venv/bin/python setup.cfg
	$(INSTALL) ".[weights,examples]"
	@touch $@

.venv/docs: .venv/bin/python setup.cfg
	$(INSTALL) ".[docs]"
	@touch $@

.venv/test: .venv/bin/python setup.cfg
	$(INSTALL) ".[test]"
	@touch $@
