# `make demo` and `make test` work on a fresh machine: they set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
# Bytecode is written for what is imported, then: compiling every file of every package takes a minute of the set-up.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint benchmark clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

demo: .venv/.base  ## Draw cells, fine-tune a small backbone on them, write runs/demo (a few minutes on 2 cores).
	$(BIN)/accelerate launch run_finetune.py recipes/demo.json
	@echo "report: runs/demo/report/report.html"

test: .venv/.dev  ## Run the tests (no network, no GPU, under 10 minutes on 2 cores).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: .venv/.dev  ## Run the slow tests too (simulations, the demo itself, the real images).
	$(BIN)/python -m pytest -m slow

lint: .venv/.dev  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# IMAGES=folder of class folders measures the data path on real images too; IMAGES_NAME is what RESULTS.md calls them.
IMAGES_NAME ?= real images
RECORD = --results RESULTS.md --json runs/benchmarks

benchmark: .venv/.base  ## Measure speed and memory against the published way into RESULTS.md (10 minutes; IMAGES=...).
	$(BIN)/cytodino benchmark data $(RECORD)/data.json
ifdef IMAGES
	$(BIN)/cytodino benchmark data --images $(IMAGES) --images-name "$(IMAGES_NAME)" --no-memory --index-files 0 $(RECORD)/data_real.json
endif
	$(BIN)/cytodino benchmark step $(RECORD)/step.json
	$(BIN)/cytodino benchmark predict $(RECORD)/predict.json
	$(BIN)/cytodino benchmark predict --files $(RECORD)/predict_files.json
	$(BIN)/cytodino benchmark startup --rounds 3 $(RECORD)/startup.json

clean:  ## Remove the virtual environment and caches; runs/ stays.
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache

.venv/.base: setup.cfg constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/.dev: .venv/.base
	$(PIP) -e ".[dev]"
	touch $@
