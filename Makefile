# make test: everything, from a bare Debian machine with root. make demo: see it work.
# The rest are parts of these two.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Where it is set, pytest would rewrite every assertion at each start: 5 s for each worker.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
PYTHON := $(VENV)/bin/python
WORKERS ?= 4
SOURCES := operator tests tools images

help: ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.made: requirements/dev.txt
	tools/venv $(VENV)
	@touch $@

venv: $(VENV)/.made ## the tools and libraries, pinned with hashes, in .venv

LOCK := $(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

lock: venv ## update the lock files from requirements/*.in
	for name in operator dev; do $(LOCK) requirements/$$name.in -o requirements/$$name.txt; done
	$(LOCK) --no-deps requirements/clients.in -o requirements/clients.txt

clients: ## helm and kubectl: downloaded, in seconds
	PYTHONPATH=tools/cluster python3 -m localcluster.clients

lint: venv ## format, lint, types, import layers
	$(VENV)/bin/ruff format --check $(SOURCES)
	$(VENV)/bin/ruff check --quiet $(SOURCES)
	$(VENV)/bin/mypy
	PYTHONPATH=operator $(VENV)/bin/lint-imports
	@! test -e operator/__init__.py || \
	  { echo "operator/__init__.py shadows the standard library: remove it"; exit 1; }

check: lint ## before a commit: lint, and the tests that only compute
	$(PYTHON) -m pytest -q -n 2 --ignore=tests/unit/agent --ignore=tests/unit/webhook tests/unit

unit: venv ## pretune's tests that need no cluster, in minutes: a sample of generated cases
	-@$(MAKE) --no-print-directory clients
	$(PYTHON) -m pytest -q -n 2 --dist loadgroup --no-loadscope-reorder \
	  tests/unit tests/sim tests/chart

properties: venv ## a million generated pods: inject, strip, hold, release
	PRETUNE_PROPERTIES=1000000 $(PYTHON) -m pytest -q -n 2 \
	  tests/unit/manifests/test_injection_properties.py

cluster: ## a real one-node Kubernetes with the project's images; .local/kubeconfig leads to it
	tools/cluster/up
	tools/images/build

cluster-down: ## remove that cluster with all of its state
	tools/cluster/down

rehearsal: venv ## vLLM's own warm-up code for the CPU: the two releases that CI plays, about 11 GB
	images/rehearsal/install

test: lint cluster rehearsal ## everything: lint, types, layers, every test in full
	PRETUNE_FULL=1 $(PYTHON) -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder \
	  --ignore=tests/neighbours tests

demo: ## the local cluster (or yours: KUBECONFIG=…), the chart, a rollout with pretune beside one without
	python3 -m tools.demo

bench: venv cluster ## the measured table, or some rows of it: ROWS="seed scale"
	PYTHONPATH=operator $(PYTHON) -m tests.bench $(ROWS)

fidelity: venv cluster ## every release's own code in every situation, or RELEASES="0.33.0"; KEEP=1
	PYTHONPATH=operator $(PYTHON) -m tests.fidelity.matrix $(if $(KEEP),--keep) $(RELEASES)
	FIDELITY_RELEASES=installed $(PYTHON) -m pytest -q -m rehearsal tests/fidelity

soak: venv ## 300 rollouts in the simulator, each with a fault
	PRETUNE_SOAK=300 $(PYTHON) -m pytest -q tests/sim/test_soak.py

hostile: venv cluster ## a namespace does harm for ten minutes beside one that rolls out
	PYTHONPATH=operator HOSTILE_SECONDS=600 $(PYTHON) -m tests.bench hostile

neighbours: venv cluster ## beside the real Kueue and Argo Rollouts, which are built first (minutes, once)
	PYTHONPATH=tools/cluster python3 -m localcluster.neighbours
	$(PYTHON) -m pytest -q -m neighbours tests/neighbours

docs: venv ## update the generated documents
	$(PYTHON) -m tools.docs

.PHONY: help venv lock clients lint check unit properties cluster cluster-down rehearsal test demo \
  bench fidelity soak hostile neighbours docs
