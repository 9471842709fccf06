# What a person types. Each target sets up what is missing first (.ci/setup says each thing it does).

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint sim soak matrix containers failures bench clean
RUN := .venv/bin
WITH_ZOOKEEPER := .ci/with-zookeeper
WORKERS ?= 2
SIM_SECONDS ?= 600
SIM ?= --by-date --seconds $(SIM_SECONDS)
BENCH_MINUTES ?= 20
SOAK_FOR ?= 1h
SOAK_SEED ?= $(shell date +%Y%m%d)

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

setup: ## the virtual environment and a ZooKeeper server, where missing
	@.ci/setup

demo: ## a fabric of 30 agents on this machine deploys 50 Large instances, shows the flow, and leaves nothing behind
	@.ci/setup
	@$(WITH_ZOOKEEPER) $(RUN)/fabric demo

# A file is one worker's, with its fabric and its servers. In order: the long files come first, and many short ones last.
test: ## all tests, on two cores (WORKERS=2), also those against real processes
	@.ci/setup
	@$(WITH_ZOOKEEPER) $(RUN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

sim: ## seeds of the simulator that nobody ran before today, for SIM_SECONDS (600), on all cores
	@.ci/setup
	$(RUN)/python -m fabric.sim $(SIM)

soak: ## random faults under load on real processes, for SOAK_FOR (1h), with a seed by date (SOAK_SEED)
	@.ci/setup
	@$(WITH_ZOOKEEPER) $(RUN)/fabric chaos run --random --seed $(SOAK_SEED) --for $(SOAK_FOR) --load 5/s

matrix: ## each role killed at each step of the flow, on real processes: some minutes
	@.ci/setup
	@$(WITH_ZOOKEEPER) $(RUN)/fabric chaos matrix

containers: ## tests of ZooKeeper in containers, with an engine of Debian's packages where none answers (needs root)
	@.ci/setup
	@.ci/docker $(RUN)/python -m pytest -m containers

failures: ## measures how soon all is well again after a failure, for bench/RESULTS.md: some ten minutes
	@.ci/setup
	@$(WITH_ZOOKEEPER) $(RUN)/python -m bench.failures

lint: ## ruff, mypy --strict, the import contracts
	@.ci/setup lint
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/lint-imports

bench: ## measures the figures in bench/RESULTS.md anew, as far as they fit into BENCH_MINUTES (20)
	@.ci/setup
	@$(WITH_ZOOKEEPER) $(RUN)/python -m bench --minutes $(BENCH_MINUTES)

clean: ## removes the virtual environment and all caches
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
