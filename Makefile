# The daily commands. `make demo` and `make test` work on a fresh machine: Debian 12, Python 3.11, no GPU, no compiler.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
ACCEL ?= cpu
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(ACCEL)
DEV_READY := $(VENV)/.ready-dev
LOCKS := infra/requirements/base.txt infra/requirements/$(ACCEL).txt
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
WHEELS := $(if $(wildcard wheelhouse),--no-index --find-links wheelhouse,)

.PHONY: help venv dev images demo slurm-demo slurm-there k8s-demo k8s-programs same-weights test test-fast test-exhaustive soak check format bench lock wheelhouse clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

venv: $(READY) ## the environment alone, from the lock file; ACCEL=cpu|cuda|site

$(READY): $(LOCKS) pyproject.toml
	@echo "environment: $(VENV) (ACCEL=$(ACCEL)), about three minutes the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(if $(filter site,$(ACCEL)),--system-site-packages,) $(VENV) \
	  || { echo "python3 cannot make environments; mend: apt-get install python3-venv" >&2; exit 2; }
	@$(PIP) install $(WHEELS) -r infra/requirements/$(ACCEL).txt
	@$(PIP) install --no-deps --no-build-isolation --no-index --editable .
	@touch $(READY)

dev: $(DEV_READY) ## the environment with what checks and tests need

$(DEV_READY): $(READY) infra/requirements/dev.txt
	@$(PIP) install $(WHEELS) -r infra/requirements/dev.txt
	@touch $(DEV_READY)

demo: $(READY) ## the whole pipeline on real text that this machine has
	@$(BIN)/headrace demo

slurm-demo: slurm-there $(READY) ## the same on a Slurm cluster of three nodes that it starts here, one of which fails; needs root and Slurm
	@$(BIN)/python infra/slurm/demo.py

k8s-demo: k8s-programs $(READY) ## the same on a Kubernetes cluster of three nodes that it starts here, one of which fails; needs root
	@$(BIN)/python infra/kubernetes/demo.py

same-weights: slurm-there k8s-programs $(READY) ## one recipe on one machine, on Slurm and on Kubernetes, started here: equal weights, bit for bit; needs root and Slurm
	@$(BIN)/python -m flows.same_weights

k8s-programs: ## build Kubernetes' programs into ~/.cache/headrace, once: ten minutes
	@$(PYTHON) infra/kubernetes/test_cluster.py build

slurm-there:
	@type -P slurmctld slurmd munged sbatch >/dev/null \
	  || { echo "Slurm is not installed; mend: apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge" >&2; exit 2; }

test: $(DEV_READY) ## the test suite
	@$(BIN)/python -m pytest -m "not exhaustive"

test-fast: $(DEV_READY) ## the tests that need no ranks and no servers, with fewer examples of each property
	@$(BIN)/python -m pytest -m "not slow and not exhaustive" --hypothesis-profile=fast

test-exhaustive: $(DEV_READY) ## the tests that take minutes each; MARK=slurm, MARK="not slurm": only those
	@$(BIN)/python -m pytest -m "exhaustive$(if $(MARK), and ($(MARK)),)"

soak: $(DEV_READY) ## random trouble until the time is up: make soak MINUTES=30 SEED=1
	@$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED),)

check: $(DEV_READY) ## format, lint, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(DEV_READY) ## rewrite the sources in the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(DEV_READY) ## one benchmark: make bench NAME=noop
	@$(BIN)/python -m tests.benchmarks $(NAME) $(if $(JSON),--json $(JSON),) $(if $(MEGABYTES),--megabytes $(MEGABYTES),)

lock: $(DEV_READY) ## write the lock files from what is installed
	@$(BIN)/python infra/requirements/lock.py

wheelhouse: $(READY) ## all packages as files, for machines without a network
	@$(BIN)/python -m pip wheel --wheel-dir wheelhouse -r infra/requirements/$(ACCEL).txt -r infra/requirements/dev.txt

images: $(DEV_READY) ## both container images, with buildah, and what is in them; ARGUMENTS="--base … --accel cuda"
	@$(BIN)/python infra/docker/build.py $(ARGUMENTS)

clean: ## remove all that was made
	rm -rf $(VENV) .headrace .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache wheelhouse headrace.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
