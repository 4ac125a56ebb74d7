# Each target does its own set-up on a machine with Python 3.10 to 3.13 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo reproduce test lint types unit clean
.DEFAULT_GOAL := test

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --use-pep517 --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/throughtime demo --out runs/demo --resume

# Published results on real data: make reproduce DATA=folder; writes docs/results-reading.md.
reproduce: $(VENV)/installed
	$(BIN)/throughtime reproduce --data $(or $(DATA),$(error name the folder of data sets: make reproduce DATA=folder))

test: lint types unit

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

# two processes of one thread each; what needs several threads sets their number itself
unit: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

clean:
	rm -rf $(VENV) build dist
