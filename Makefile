# `make demo` and `make test` are the two commands; each makes .venv and installs when needed, and only then.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast check audit bench

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
UNPACKED := .venv/.unpacked
PIP = $(BIN)/python -m pip install --no-input --disable-pip-version-check --progress-bar off --no-compile --constraint constraints.txt
unexport PYTHONDONTWRITEBYTECODE # compiled once, each process of the tests starts 8 seconds sooner
ROOMS := plants cluster serving
ARGS ?=

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv and install the pinned packages into it
	@echo "Installed in .venv: $$($(BIN)/python --version), $$(wc -l < constraints.txt | tr -d ' ') packages pinned by constraints.txt"

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or say make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than 3.11: say make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@free=$$(df -Pm . | awk 'NR == 2 {print $$4}'); test "$$free" -ge 9000 || echo "Only $$free MB are free here:" \
	  "the packages take 8,000" >&2
	@test -x $(BIN)/python || { echo "Making .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; }
	@echo "Installing crossplant and the packages that constraints.txt pins; 3 GB are loaded, which takes a minute or two"
	@{ $(PIP) --quiet uv && $(BIN)/uv pip install --system-certs --python $(BIN)/python --cache-dir $(UNPACKED) \
	  --constraint constraints.txt --editable '.[dev]' 2>&1 | awk \
	  '!/^ [+-] |Downloaded|\([0-9.]+KiB|\([0-9]\.[0-9]MiB/ {print "  " $$0; fflush()}'; } \
	  || { echo "uv could not install them, for the reason above: now with pip, which takes 2 minutes" >&2; \
	    $(PIP) --editable '.[dev]' 2>&1 | awk '/Downloading .*[0-9][0-9]\.[0-9] MB|[Ee][Rr][Rr][Oo][Rr]/ {print "  " $$0; fflush()}'; }
	@rm -rf $(UNPACKED)
	@touch $@

demo: $(STAMP) ## Train, compare, export, serve and call the embedded fleet (synthetic data)
	@echo "Running the demo: the embedded fleet, from plants to endpoints"
	@$(BIN)/crossplant demo $(ARGS)

test: $(STAMP) ## Run every test and hold 90 % of the lines of plants, cluster, serving
	@echo "Running all tests with coverage of $(ROOMS)"
	@$(BIN)/python -m pytest --numprocesses logical --maxprocesses 2 --dist loadfile --no-loadscope-reorder $(ROOMS:%=--cov=%) --cov-report=term:skip-covered --cov-fail-under=90 $(ARGS)

test-fast: $(STAMP) ## Run the tests that need no Ray, no store and no server (under a minute)
	@echo "Running the fast tests"
	@$(BIN)/python -m pytest -m "not slow" --numprocesses logical --maxprocesses 2 $(ARGS)

check: $(STAMP) ## Check format, lint, types and layering
	@echo "ruff format"; $(BIN)/ruff format --check .
	@echo "ruff check"; $(BIN)/ruff check .
	@echo "mypy --strict: $(ROOMS)"; $(BIN)/mypy
	@echo "layering"; $(BIN)/python -m pytest --durations=0 tests/test_layering.py $(ARGS)

audit: $(STAMP) ## Look the pinned packages up among known vulnerabilities; needs the internet, so CI does not
	@$(BIN)/python -m pip install --no-input --quiet --disable-pip-version-check --constraint constraints.txt pip-audit
	@$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

bench: $(STAMP) ## Run every benchmark; each prints one JSON object last
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python "$$file" $(ARGS); done
