# Set-up and checks; everything runs in .venv, which is made if it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint

demo: .venv/examples
	$(BIN)/python examples/quickstart/plot_forget.py

test: .venv/test
	$(BIN)/python -m pytest

test-slow: .venv/test
	$(BIN)/python -m pytest -m slow

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/examples: .venv/bin/python setup.cfg
	$(BIN)/python -m pip install -q -e ".[weights,examples]"
	touch $@

.venv/test: .venv/bin/python setup.cfg
	$(BIN)/python -m pip install -q -e ".[test]"
	touch $@
