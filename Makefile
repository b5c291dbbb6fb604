# Every command sets up what it needs in its own virtual environment (VENV, default .venv) from the lock file.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
FUZZ_EXAMPLES ?= 100000

.DEFAULT_GOAL := help
.PHONY: help demo test check check-deep bench fuzz build-binary schema lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: $(STAMP) ## train a model on 40 devices that come and go, masks on, and prove every sum
	@$(BIN)/whimbrel-lab demo $(DEMO)

test: $(STAMP) ## run the tests
	@$(BIN)/python -m pytest -q $(TESTS)

check: $(STAMP) ## lint, types, import arrows, schema conformance, C kernels under sanitizers
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@command -v flatc >/dev/null || { echo "check: flatc is missing (Debian: apt-get install flatbuffers-compiler)"; exit 1; }
	@$(BIN)/python -m pytest -q tests/test_imports.py tests/test_schema.py
	@command -v $(or $(CC),cc) >/dev/null || { echo "check: a C compiler is missing; the kernels' sanitizer run needs one"; exit 1; }
	@$(MAKE) --no-print-directory -C cext/tests

check-deep: $(STAMP) ## search six-member windows exhaustively; train whole models beside JAX (minutes)
	@$(BIN)/python -c 'import jax' 2>/dev/null || \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-oracle.lock
	@$(BIN)/python -m pytest -q -s -o timeout=1800 -m deep tests/model tests/compiler

bench: $(STAMP) ## print speed ratios, each against its baseline in the same run
	@$(BIN)/whimbrel-lab bench

fuzz: $(STAMP) ## throw FUZZ_EXAMPLES (100,000) mutated messages, or FUZZ_SECONDS of them, at each parser and call
	@FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -q -o timeout=7200 tests/test_fuzz.py tests/test_fuzz_corpus.py tests/test_fuzz_windows.py tests/test_fuzz_endpoints.py

build-binary: $(STAMP) ## build dist/whimbrel-server, one file, and ask it for its health
	@$(BIN)/python -m whimbrel_lab.binary

schema: ## regenerate the FlatBuffers code from schemas/whimbrel.fbs
	@flatc --python --gen-onefile -o schemas/whimbrel_protocol/_fb schemas/whimbrel.fbs

lock: ## resolve the dependencies anew into requirements.lock and requirements-oracle.lock (needs uv)
	@uv pip compile -q --universal --python-version 3.11 --extra dev --generate-hashes --no-header \
	  --no-emit-find-links --no-emit-index-url pyproject.toml -o requirements.lock
	@uv pip compile -q --universal --python-version 3.11 --extra oracle --generate-hashes --no-header -c requirements.lock \
	  --no-emit-find-links --no-emit-index-url pyproject.toml -o requirements-oracle.lock

clean: ## remove what the commands made
	@rm -rf $(VENV) build dist demo-out cext/whimbrel_kernels/*.so cext/tests/build *.egg-info

$(STAMP): requirements.lock pyproject.toml setup.py $(wildcard cext/src/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "set-up: Python 3.11 or newer is needed (PYTHON=...)"; exit 1; }
	@command -v $(or $(CC),cc) >/dev/null || echo "set-up: no C compiler, so the kernels run in NumPy (same results, slower)"
	@echo "set-up: installing into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'import whimbrel_kernels as k; print("set-up: ready, kernels:", k.IMPLEMENTATION)'
	@touch $@
