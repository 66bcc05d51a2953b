.DEFAULT_GOAL := help
.ONESHELL:
.SHELLFLAGS := -eu -c
SHELL := /bin/sh
MAKEFLAGS += --no-builtin-rules

BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help install demo run servers test check soak bench lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Install everything, pinned and hashed, into .venv

demo: install ## Show the service at work on real input, and check every result
	@$(BIN)/chargegate demo

run: install ## Serve on the default configuration
	@exec $(BIN)/chargegate serve

servers: install ## Provision the servers that the tests start
	@scripts/provision || [ -z "$${CI:-}" ]

test: servers ## Run the whole suite (ARGS="tests/cli -k acl" for a part of it)
	@$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not soak" $(ARGS)

check: install ## Lint, format, types and import rules
	@$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: servers ## Run the long tests
	@$(BIN)/pytest -m soak $(ARGS)

bench: servers ## Measure, beside the floor in the same run (ARGS="--only engines" for a part of it)
	@$(BIN)/python bench/run.py $(ARGS)

lock: install ## Write requirements.txt anew (ARGS=--upgrade for newer versions)
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
		--all-extras --group dev pyproject.toml -o requirements.txt $(ARGS)

clean: ## Remove .venv and caches; data stay
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements.txt pyproject.toml
	@python=
	for candidate in python3.13 python3.12 python3.11 python3; do
		if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			python=$$candidate
			break
		fi
	done
	if [ -z "$$python" ]; then
		echo "chargegate: needs Python 3.11 or newer; found none" >&2
		exit 1
	fi
	if ! $$python -c 'import ensurepip' 2>/dev/null; then
		package=$$($$python -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
		as_root=$$([ "$$(id -u)" = 0 ] || echo "sudo -n")
		if ! command -v apt-get >/dev/null || ! $$as_root true 2>/dev/null; then
			echo "chargegate: $$python lacks its venv module; install the package $$package" >&2
			exit 1
		fi
		$$as_root apt-get update -qq
		$$as_root apt-get install -y -qq --no-install-recommends "$$package"
	fi
	echo "installing into .venv with $$($$python --version)"
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $$python -m venv --clear .venv
	pip="$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input"
	$$pip --require-hashes -r requirements.txt
	$$pip --no-deps --no-build-isolation -e .
	touch $(INSTALLED)
