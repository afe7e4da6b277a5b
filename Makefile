# Every target makes its own environment first (tools/setup.sh); a second call does not reinstall.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV ?= .venv
PYTHON ?=
WORKERS ?= 2
BIN := $(VENV)/bin
export PYTHON

# Two test processes on two cores: one compute thread each, and no thread that waits by spinning.
THREADS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE MPLBACKEND=Agg

.PHONY: help setup prepare demo test lint type format lock pipelines docs images test-cluster clean

help:  ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## Make the environment in .venv from the hashed locks (the other targets do it themselves)
	@tools/setup.sh $(VENV)

demo: setup  ## Run the whole flow on phantom hearts; the result lies in demo/
	@MPLBACKEND=Agg $(BIN)/sssflow demo demo

prepare: setup
	@$(BIN)/python -m tools.prepare_tests

test: lint type prepare  ## Everything that must hold: lint, types, all tests
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: setup  ## Check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: setup  ## Check types (strict)
	$(BIN)/mypy

format: setup  ## Put all Python files into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup  ## Resolve requirements/*.txt again from pyproject.toml
	tools/lock.sh $(VENV)

pipelines: setup  ## Compile the pipelines, and write the components' pages, beside their sources
	$(BIN)/python -m pipelines.compile

docs: setup  ## Write docs/reference again from the models and the command line
	$(BIN)/python tools/reference.py

images:  ## Build the container images; their SBOMs (CycloneDX) lie in build/images
	@tools/images.sh

test-cluster: setup  ## Run the tests that need a Kubernetes cluster (KUBECONFIG, the kit, or kind)
	@$(BIN)/python -m tools.prepare_tests --cluster
	@$(THREADS) tools/test_cluster.sh $(VENV)

clean:  ## Remove the environment, caches and everything that the commands above left
	rm -rf $(VENV) .venv-triton .venv-triton.lock .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist demo local_outputs
	find src tests components pipelines benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +
