# `make help` lists what there is. A fresh machine needs Python 3.12 or newer and make; the rest is installed into .venv.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:

PYTHON ?= $(firstword $(foreach name,python3.13 python3.12 python3,$(shell $(name) --version >/dev/null 2>&1 && echo $(name))))
BIN := .venv/bin
INSTALLED := .venv/installed
STACK ?= dev

export SAM_CLI_TELEMETRY := 0
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help
help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(INSTALLED): requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { echo "CRM Relay needs Python 3.12 or newer; found: $$($(PYTHON) --version)"; exit 1; }
	echo "Installing into .venv, once (a minute or two) …"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	# Older ones do not find a pin with extras when they check hashes.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=24.2'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

.PHONY: install
install: $(INSTALLED) ## Make .venv and install what is missing.

.PHONY: start
start: $(INSTALLED) ## Run everything here: API, queues, functions, CRM sandboxes; play the sample events; stay up until Ctrl-C.
	@exec relay start

.PHONY: test
test: $(INSTALLED) ## Run the tests: unit, component, stack.
	@pytest --numprocesses auto --dist worksteal -m 'not everywhere' tests/unit tests/component
	pytest --numprocesses auto --dist loadfile tests/stack

.PHONY: proof
proof: $(INSTALLED) ## The proof in small: trouble at every call, fifty bad days, planted mistakes, fuzzing.
	@pytest --numprocesses auto --dist worksteal -m everywhere tests/component
	pytest --numprocesses auto --dist worksteal tests/simulation tests/planted tests/fuzz

.PHONY: crash
crash: $(INSTALLED) ## Kill each function of the local stack at each of its I/O calls; list the calls.
	@pytest --numprocesses auto --dist worksteal tests/crash

.PHONY: simulate
simulate: $(INSTALLED) ## Many bad days for the relay in virtual time (SEEDS=100 FIRST=1); one seed alone prints its trace.
	@python -m tests.simulation --seeds $(or $(SEEDS),100) --first $(or $(FIRST),1)

.PHONY: planted
planted: $(INSTALLED) ## Plant known design mistakes into the relay; print who notices each, and how fast.
	@python -m tests.planted

.PHONY: fuzz
fuzz: $(INSTALLED) ## What strangers may send, INPUTS=1000000 of it, on everything that takes input.
	@python -m tests.fuzz --inputs $(or $(INPUTS),1000000) --first $(or $(FIRST),1)

.PHONY: mutants
mutants: $(INSTALLED) ## Change the core in one place at a time; print what no test notices (ONLY=signing for one module).
	@python -m tests.mutants --only "$(ONLY)"

.PHONY: load
load: $(INSTALLED) ## Load on the running `make start` (RATE=50 SECONDS=60), then a check of every effect.
	@python -m workbench.load --rate $(or $(RATE),50) --seconds $(or $(SECONDS),60)

.PHONY: check
check: $(INSTALLED) ## Format, lint, types, import rules, template, generated files, relay.toml.
	@ruff format --check --quiet
	ruff check --quiet
	mypy
	lint-imports --no-logo
	sam validate --lint
	python -m workbench.openapi --check
	python -m workbench.amocrm_table --check
	relay check --offline

.PHONY: format
format: $(INSTALLED) ## Format the code and mend what the linter can mend.
	@ruff check --quiet --fix
	ruff format --quiet

.PHONY: build
build: $(INSTALLED) ## Build what is deployed, with bytecode, into .aws-sam (STACK=dev or prod).
	@python -m workbench.build --config-env $(STACK)

.PHONY: artifact
artifact: $(INSTALLED) ## Build for x86_64 and run every built function under AWS's Runtime Interface Emulator.
	@python -m workbench.build --architecture x86_64
	pytest tests/artifact

.PHONY: deploy
deploy: build ## Deploy to AWS (STACK=dev or prod), asking before anything changes.
	@sam deploy --config-env $(STACK)

.PHONY: bench
bench: $(INSTALLED) ## Measure cold starts, CPU time of a callback, AWS calls and the price of a million.
	@python -m workbench.build --architecture x86_64
	python -m workbench.bench

.PHONY: openapi
openapi: $(INSTALLED) ## Write docs/openapi.json anew from the models.
	@python -m workbench.openapi

.PHONY: requirements
requirements: $(INSTALLED) ## Pin all requirements anew, with hashes and without addresses.
	@pin() { uv pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --upgrade "$$@"; }
	pin requirements-dev.in --output-file requirements-dev.txt
	grep -E '^[a-z].*==' requirements-dev.txt | cut -d' ' -f1 > .venv/tested-with.txt
	for folder in layers/dependencies tests/artifact; do
	  pin $$folder/requirements.in --constraint .venv/tested-with.txt --output-file $$folder/requirements.txt
	done

.PHONY: clean
clean: ## Remove what was built and what the local stack left, but not .venv.
	@rm -rf .aws-sam .relay .pytest_cache .mypy_cache .ruff_cache .hypothesis
