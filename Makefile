# Every target works from a fresh clone; the first one that needs it makes .venv.
# Paths are relative on purpose: the clone may lie in a path with spaces.

# The first Python of a supported version that really runs; override with PYTHON=...
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	>/dev/null 2>&1 && echo $$p && break; done)
# A package index with the torch build you want (see the README); empty: pip's default.
TORCH_INDEX ?=
# make bench ONLY=bench_model runs one benchmark.
ONLY ?=
# The real place of .venv. Ray starts its workers through a shell that splits a path at its spaces, so
# in such a clone .venv is a link to an environment in the user's cache.
BIN = $(or $(realpath .venv),.venv)/bin
CACHED_VENV = $${XDG_CACHE_HOME:-$$HOME/.cache}/coatnet/venv-$$(pwd | cksum | cut -d" " -f1)
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST = $(BIN)/python -m pytest

.PHONY: help demo down test test-all check style bench clean venv

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/installed ## The whole product on CIFAR-10, from images to a promoted model
	@$(BIN)/python -m pipelines.demo $(DEMO_ARGS)

down: ## Stop the local services that demo started
	@test ! -x $(BIN)/python || $(BIN)/python -m infra.local_stack down

test: check ## make check and the test suite, without what is slow
	$(PYTEST) -m "not slow" --durations=15

test-all: check ## Everything: also the full demo, long faults, retraining, the benchmarks
	$(PYTEST) --durations=25
	$(MAKE) bench

check: .venv/installed-dev ## ruff, pyright strict, import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

style: .venv/installed-dev ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed ## Benchmarks against the peers; ONLY=bench_model for one
	@$(BIN)/python -m tests.benchmarks.run $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) $(ONLY)

clean: down ## Remove the environment and everything the local stack stored
	rm -rf "$$(realpath -m .venv)" .venv .local build

venv: .venv/installed-dev ## The environment with the developers' tools

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 with venv found; install one or set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test $$(df -Pk . | awk 'NR==2 {print $$4}') -ge 6291456 || { echo "error: less than 6 GiB free here; the environment and the demo need that much" >&2; exit 2; }
	@case "$$PWD" in *" "*) mkdir -p "$(CACHED_VENV)" && rm -rf .venv && ln -s "$(CACHED_VENV)" .venv;; esac
	$(PYTHON) -m venv "$$(realpath -m .venv)"
	$(if $(TORCH_INDEX),$(PIP_INSTALL) -c constraints.txt torch --index-url $(TORCH_INDEX))

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing the packages of constraints.txt into .venv (some minutes the first time)"
	$(PIP_INSTALL) -c constraints.txt -e '.[local]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP_INSTALL) -c constraints.txt -e '.[local,dev]'
	@touch $@
