.DEFAULT_GOAL := help
.ONESHELL:
.SHELLFLAGS := -eu -c
SHELL := /bin/sh
MAKEFLAGS += --no-builtin-rules

# PYTHON=python3.13 chooses the interpreter, and each one has a virtual environment of its own, here .venv-3.13.
PYTHON :=
# VERSIONS=lowest puts the lowest versions that pyproject.toml allows into yet another one. They are computed when it is
# made and not kept in a file: the floors and requirements.txt determine every version, so a file would only repeat them.
VERSIONS := locked

VENV := .venv$(patsubst locked,,$(VERSIONS:lowest=-lowest))$(patsubst python%,-%,$(notdir $(PYTHON)))
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/pytest -n 8 --dist loadscope --no-loadscope-reorder

.PHONY: help install demo peer run servers test test-without-servers test-lowest check check-speed soak bench pictures chart lock sbom clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-20s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	echo 'PYTHON=python3.13 runs any of them on that interpreter, in .venv-3.13.'

install: $(INSTALLED) ## Install everything, pinned and hashed, into .venv

demo: install ## Show the service at work on real input, and check every result
	@$(BIN)/chargegate demo

run: install ## Serve on the default configuration
	@exec $(BIN)/chargegate serve

servers: install ## Provision the servers that the tests start
	@scripts/provision || [ -z "$${CI:-}" ]

test: servers ## Run the whole suite (ARGS="tests/cli -k acl" for a part of it)
	@$(PYTEST) -m "not soak" $(ARGS)

test-without-servers: install ## Run the tests that need no Redis, PostgreSQL, RabbitMQ, Kafka or InfluxDB
	@$(PYTEST) -m "not soak and not servers" $(ARGS)

test-lowest: ## Run these with the lowest versions that pyproject.toml allows
	@$(MAKE) --no-print-directory test-without-servers VERSIONS=lowest

check: install ## Lint, format, types and import rules
	@$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: servers ## Run the long tests
	@CHARGEGATE_TEST_TRUE_STARTS=1 $(BIN)/pytest -m soak $(ARGS)

peer: .venv-peer/.installed ## Install what the benchmark compares with, into .venv-peer

.venv-peer/.installed: bench/peer/requirements.txt | $(INSTALLED)
	@$(BIN)/python -m venv --clear .venv-peer
	.venv-peer/bin/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes -r $<
	touch $@

bench: servers peer ## Measure, beside the floor in the same run (ARGS="--only engines" for a part of it)
	@$(BIN)/python bench/run.py $(ARGS)

check-speed: install ## Compare the instructions of a request with the committed figure (ARGS=--write writes it)
	@$(BIN)/python bench/instructions.py $(ARGS)

pictures: servers ## Make the pictures of the dashboard in docs/ anew
	@$(BIN)/python docs/dashboard_pictures.py

chart: install ## Write the Helm chart's schema of the settings anew
	@$(BIN)/python deploy/helm/values_schema.py $(ARGS)

lock: install ## Write the requirements files anew (ARGS=--upgrade for newer versions)
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
		--all-extras --group dev pyproject.toml -o requirements.txt $(ARGS)
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.13 \
		--all-extras -c requirements.txt pyproject.toml -o requirements-image.txt $(ARGS)
	@echo hatchling | $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
		--python-version 3.13 -c requirements.txt - -o requirements-build.txt $(ARGS)
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 \
		bench/peer/requirements.in -o bench/peer/requirements.txt $(ARGS)

sbom: install ## Write a bill of materials, dist/sbom.cdx.json
	@scripts/sbom $(VENV) dist/sbom.cdx.json

clean: ## Remove the virtual environments and caches; data stay
	@rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements.txt pyproject.toml scripts/install
	@scripts/install $(VENV) $(VERSIONS) $(PYTHON)
