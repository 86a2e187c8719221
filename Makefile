# One verb per chore, the same by hand and in CI. A bare Debian 12 with Python 3.11 needs `make run` or `make test`.
#
#   make run [ONCE=1] [ARGS=...]   set up, then bring everything up on this machine (`tidegate up`)
#   make test [ARGS=...]           set up, `make check`, then every test (ARGS go to pytest)
#   make check [ARGS=...]          lint, types, import contracts, tidy rules, proto drift (ARGS name single checks)
#   make bench [ARGS=...]          the benchmarks
#   make bench-path [ARGS=...]     the data path beside vllm-router, sglang-router and LiteLLM; needs wrk (apt-get install wrk)
#   make bench-processes [OF=edge] an edge, or with OF=intake an intake, of one process and of two, side by side; needs wrk
#   make bench-placement [FULL=1]  placement against the published routers, simulated; FULL=1 writes docs/placement.md
#   make chaos [ARGS=...]          real faults on real programs (ARGS: scenarios, --list, --short, --json FILE);
#                                  ARGS="--random 7 --rounds 20": faults that the seeds 7 to 26 draw
#   make soak [MINUTES=20]         mixed load for minutes: nothing grows, leaks or fails over (ARGS=--json FILE)
#   make fuzz [SECONDS=60]         every reader of bytes from outside under fuzzers (ARGS name targets; --keep adds to the corpus)
#   make setup                     packages and model; nothing to do: under a second
#   make protos                    stubs from protos/tidegate/v1/*.proto
#   make lock [UPGRADE=1]          requirements/ from pyproject.toml
#   make clean                     remove .venv and every cache of this checkout

# The system's own Python 3.11 where there is one. Debian builds it with profile feedback, which a Python built by hand
# often lacks: a request then takes a fifth more of processor time (docs/performance.md).
PYTHON ?= $(or $(wildcard /usr/bin/python3.11),python3.11)
VENV := .venv/bin
ARGS ?=
export PYTHONUNBUFFERED := 1

.PHONY: help setup packages model run test check bench bench-path bench-processes bench-placement chaos soak fuzz protos lock clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

setup: packages model

packages:
	@$(PYTHON) tools/setup.py packages

model: packages
	@$(VENV)/python tools/setup.py model

run: setup
	@exec $(VENV)/tidegate up $(if $(ONCE),--once) $(ARGS)

# The tests run even when a check fails, so that one run tells everything; pytest's own summary comes last.
test: setup
	@checked=0; $(VENV)/python tools/check.py || checked=$$?; \
	$(VENV)/python -m pytest --ignore=tests/tidy $(ARGS) || exit $$?; exit $$checked

check: packages
	@$(VENV)/python tools/check.py $(ARGS)

bench: setup
	@$(VENV)/python -m benchmarks $(ARGS)

bench-path: packages
	@$(VENV)/python -m benchmarks.path $(ARGS)

bench-processes: packages
	@$(VENV)/python -m benchmarks.path.processes $(if $(OF),--of $(OF)) $(ARGS)

bench-placement: packages
	@$(VENV)/python -m benchmarks.placement $(if $(FULL),--full --write --fresh 10) $(ARGS)

fuzz: packages
	@$(VENV)/python tools/fuzz.py $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

chaos: setup
	@$(VENV)/python -m tests.chaos $(ARGS)

soak: packages
	@$(VENV)/python -m tests.chaos.soak $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

protos: packages
	@$(VENV)/python tools/protos.py $(ARGS)

lock: packages
	@$(VENV)/python tools/lock.py $(if $(UPGRADE),--upgrade)

clean:
	rm -rf .venv .tidegate .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
