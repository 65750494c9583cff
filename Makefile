# Set-up and checks; everything runs in .venv, which is made if it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint docs

demo: .venv/examples
	$(BIN)/python examples/quickstart/plot_forget.py

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
	$(PYTHON) -m venv .venv

.venv/examples: .venv/bin/python setup.cfg
	$(BIN)/python -m pip install -q -e ".[weights,examples]"
	touch $@

.venv/docs: .venv/bin/python setup.cfg
	$(BIN)/python -m pip install -q -e ".[docs]"
	touch $@

.venv/test: .venv/bin/python setup.cfg
	$(BIN)/python -m pip install -q -e ".[test]"
	touch $@
