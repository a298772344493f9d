# The project's commands. Each sets up .venv by itself; a machine needs only make and Python 3.11 to 3.14.
#
#   make demo [DATA=DIR]   many callers' speech through one batched network (DATA: a folder of WAV files)
#   make test              lint and the tests; `make test PRECISION=bf16` with every float32 model served so (or tf32, int8)
#   make test-slow         the tests marked slow, which `make test` leaves out; `make test-all` all of them
#   make fuzz              20,000 inputs of every method, drawn and broken, 2,000 of which `make test` sends; 10 minutes
#   make soak [MINUTES=30] mixed traffic with cancels, kills and lost connections; what is left of it afterwards
#   make lint              the checks alone; `make format` mends what can be mended by itself
#   make protos            the gRPC stubs, generated again from protos/
#   make bench [DATA=DIR]  every goal of speed in one sitting, beside Triton and others; 16 minutes
#   make bench-training    more of training, 7 minutes; `make bench-sweeps` how cost grows, 5 minutes (both: DATA=DIR)
#   make bench-quick       all three, in short, 2.5 minutes (DATA=DIR)
#   make bench-front-end   what each kind of message costs the process that serves it; 3 minutes
#   make bench-overload    what a server does when more is offered than it can do, beside Triton; 6 minutes
#   make bench-gpu         what a GPU does through a server, beside cuDNN alone; 8 minutes
#   make dashboard         Grafana's dashboard, made again by tools/make_dashboard.py
#   make prometheus        promtool and prometheus for the tests of deploy/, which `make test` tries by itself
#   make peers             sets up Triton, which `make bench` measures beside (benchmarks/peers/README.md)
#   make compare BEFORE=FILE AFTER=FILE   two results of a benchmark, by ratio
#   make compose-test      docker-compose.yml, built and run for real
#   make clean             removes .venv and what the tools left
#
# PYTHON       the interpreter that .venv is made with
# TORCH_INDEX  the package index that torch comes from: by default PyTorch's CPU builds on a Linux machine without an
#              NVIDIA driver, else pip's own index, which is also taken where that one cannot be reached
# MINUTES      how long `make soak` runs
# PRECISION    in which `make test` serves models whose test names none; by default full
# ARGS         more arguments for the program that a command runs; those for `make test`, such as "tests/rpc -x", say
#              which tests run and how, which by default are all but the slow ones, on up to four cores at once

VENV := .venv
BIN := $(VENV)/bin
PROMETHEUS := $(VENV)/prometheus/.tried
INSTALLED := $(VENV)/.installed
CPU_TORCH := https://download.pytorch.org/whl/cpu
REACHED := import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=15)
TORCH_INDEX ?= $(shell [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && echo $(CPU_TORCH))
DATA ?=
PRECISION ?=
MINUTES ?= 30
ARGS ?=
PYTEST = $(BIN)/python -m pytest $(if $(PRECISION),--precision $(PRECISION))
TOGETHER := -n auto --dist loadfile --no-loadscope-reorder
RECORDINGS = $(if $(DATA),--data "$(DATA)")

.PHONY: help demo test test-slow test-all fuzz soak lint format protos dashboard prometheus peers compare bench bench-training bench-sweeps bench-gpu bench-front-end bench-overload bench-quick compose-test clean

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py $(RECORDINGS) $(ARGS)

ifdef ARGS
test: lint $(PROMETHEUS)
	$(PYTEST) $(ARGS)
else
test: lint $(PROMETHEUS)
	$(PYTEST) $(TOGETHER) -m "not slow and not alone"
	$(PYTEST) -m alone
endif

test-slow: $(INSTALLED)
	$(PYTEST) $(TOGETHER) -m "slow and not alone"

test-all: test test-slow

fuzz: $(INSTALLED)
	$(PYTEST) tests/fuzz --inputs 20000 $(ARGS)

soak: $(INSTALLED)
	$(BIN)/python tools/soak.py --minutes $(MINUTES) $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/python tools/generate_stubs.py --check
	$(BIN)/python tools/generate_blocking.py --check
	$(BIN)/python tools/make_dashboard.py --check

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protos: $(INSTALLED)
	$(BIN)/buf lint
	$(BIN)/python tools/generate_stubs.py
	$(BIN)/python tools/generate_blocking.py

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench_server $(RECORDINGS) $(ARGS)

bench-training: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench_training $(RECORDINGS) $(ARGS)

bench-sweeps: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench_sweeps $(RECORDINGS) $(ARGS)

bench-gpu: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench_gpu $(ARGS)

bench-front-end: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench_front_end $(ARGS)

bench-overload: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench_overload $(ARGS)

bench-quick: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench_server --quick --only callers connections streams realtime blocking padding $(RECORDINGS) $(ARGS)
	$(BIN)/python -m benchmarks.bench_training --quick $(RECORDINGS) $(ARGS)
	$(BIN)/python -m benchmarks.bench_sweeps --quick $(RECORDINGS) $(ARGS)

dashboard: $(INSTALLED)
	$(BIN)/python tools/make_dashboard.py

prometheus: $(INSTALLED)
	$(BIN)/python tools/fetch_prometheus.py

peers: $(INSTALLED)
	PYTHON=$(or $(PEERS_PYTHON),$(BIN)/python) TORCH_INDEX="$(TORCH_INDEX)" benchmarks/peers/setup.sh

compare: $(INSTALLED)
	$(BIN)/python -m benchmarks.compare "$(BEFORE)" "$(AFTER)" $(ARGS)

compose-test: $(INSTALLED)
	$(BIN)/python tools/compose_test.py $(ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Once for each .venv, and no reason to fail: where they cannot be had, the tests that need them are skipped.
$(PROMETHEUS): tools/fetch_prometheus.py $(INSTALLED)
	@$(BIN)/python tools/fetch_prometheus.py || echo 'SKIPPED: the tests of deploy/ that need prometheus and promtool'
	@mkdir -p $(@D) && touch $@

# Torch goes first and alone: resolved with the rest, it would drag CUDA's packages to machines that have no use for them.
$(INSTALLED): pyproject.toml constraints.txt
	@[ -x $(BIN)/pip ] || { python="$(PYTHON)"; \
	  for candidate in python3 python3.14 python3.13 python3.12 python3.11; do \
	    [ -n "$$python" ] && break; \
	    $$candidate -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && python=$$candidate; \
	  done; \
	  [ -n "$$python" ] || { echo 'no Python 3.11 to 3.14 with venv (Debian: python3-venv) found; name one: make PYTHON=...' >&2; exit 1; }; \
	  echo "setting up $(VENV) with $$($$python --version), which takes a minute or two"; \
	  $$python -m venv --clear $(VENV); }
	$(BIN)/pip install -q -c constraints.txt hatchling
	@index="$(TORCH_INDEX)"; \
	if [ "$$index" = "$(CPU_TORCH)" ] && ! $(BIN)/python -c '$(REACHED)' "$$index" 2>/dev/null; then \
	  echo "$$index cannot be reached: torch comes from pip's own index"; index=; \
	fi; \
	$(BIN)/pip install -q --no-deps -c constraints.txt $${index:+--index-url "$$index"} torch
	$(BIN)/pip install -q --no-build-isolation -c constraints.txt -e ".[server,audio,dev]"
	@touch $@
