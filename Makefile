# make demo   an embedded PostgreSQL with a replica, two users, the proxy in front (ARGS=--once: a tour by itself)
# make test   the tests with the compiled modules, then the pure ones interpreted (ARGS: pytest's)
# make test-long      what takes long: older PostgreSQL versions, settings of the differential tests, drills, crashes
# make test-drivers   drivers of other languages too, each on a small pool: installs them (ARGS: --json FILE, --readme)
# make test-browser   the dashboard in Chromium, under load: installs it (ARGS: --screenshots DIR --load SECONDS)
# make test-deploy    deploy/: a real Prometheus on its rules, the image's steps, the units: installs what that takes
# make fuzz   a search for input that breaks the protocol's laws (SECONDS=60), compiled, then interpreted
# make bench  against PgBouncer, in one run (ARGS: see python -m tests.bench --help)
# make drill  what clients see as hosts come and go: a failover, each fault, and their own writes: six minutes
# make thousand  1,000 clients over 5 server connections for a minute: nothing of one is seen by another
# make reads  20,000 statements of sqlsmith's: what is called a read changes nothing (installs it; ARGS: --queries, --seed)
# make lint   ruff and strict mypy
# make build  compile the modules on the path of a query, beside their sources
#
# Each makes what it needs by itself. PYTHON=... chooses another Python (3.11 or newer).

ARGS ?=
SECONDS ?= 60
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
bin := .venv/bin
pip := $(bin)/python -m pip install --quiet --disable-pip-version-check
# Each worker has a PostgreSQL of its own, and one file's tests stay together; more workers than processors, because many
# tests wait for something. ARGS=-n0 does without workers.
workers := -n 4 --dist loadfile
# What needs Debian's packages, and so root, has targets of its own.
apart := --ignore=tests/drivers --ignore=tests/browser --ignore=tests/deploy
# What has compiled modules is tested interpreted too.
both := $(addprefix tests/,wire query auth observe transport upstream session fuzz test_build.py)
sources := $(shell find proxy -name '*.py')

.PHONY: demo test test-long test-drivers test-browser test-deploy fuzz bench drill thousand reads lint build clean

demo: build
	@$(bin)/pgsluice demo $(ARGS)

test: build .venv/developing
	$(bin)/pytest -m "not long" $(apart) $(workers) $(ARGS)
	PGSLUICE_INTERPRETED=1 $(bin)/pytest -q $(both) $(workers) $(ARGS)

test-long: build .venv/developing
	$(bin)/pytest -q -m long $(apart) $(workers) $(ARGS)

test-drivers: build .venv/developing
	tests/drivers/install
	$(bin)/pytest -q --tb=short tests/drivers $(ARGS)

test-browser: build .venv/developing
	tests/browser/install
	$(bin)/pytest -q --tb=short tests/browser $(ARGS)

test-deploy: build .venv/developing
	tests/deploy/install
	$(bin)/pytest -q --tb=short tests/deploy $(ARGS)

fuzz: build .venv/developing
	$(bin)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)
	PGSLUICE_INTERPRETED=1 $(bin)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

bench: build .venv/developing
	@$(bin)/python -m tests.bench $(ARGS)

# One that misses what it is held to doesn't keep the others from running.
drill: build .venv/developing
	@missed=0; for drill in failover "failover --split-brain" "failover --lagging-replica" faults read_your_writes; do \
		echo "python -m tests.drills.$$drill"; $(bin)/python -m tests.drills.$$drill || missed=1; done; exit $$missed

thousand: build .venv/developing
	@$(bin)/python -m tests.differential.thousand $(ARGS)

reads: build .venv/developing
	@tests/integration/install-sqlsmith
	@$(bin)/python -m tests.integration.smith $(ARGS)

lint: .venv/developing
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

build: .venv/compiled

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find proxy -name '*.so' -delete

# Compiling comes after installing, as a step of its own, so that a change of a module compiles and doesn't install.
.venv/compiled: .venv/installed $(sources)
	@$(bin)/python proxy/_build.py
	@touch $@

.venv/installed: .venv/python pyproject.toml
	@echo "installing what pgsluice needs (once)"
	@$(pip) "hatchling>=1.27"
	@PGSLUICE_NO_COMPILE=1 $(pip) --no-build-isolation --editable '.[demo,build]'
	@touch $@

# Tests, benchmarks and lint need more than the demo, which is not kept waiting for it.
.venv/developing: .venv/installed
	@echo "installing what its tests need (once)"
	@$(bin)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*project["optional-dependencies"]["dev"], sep="\n")' > .venv/developing.txt
	@$(pip) --requirement .venv/developing.txt
	@touch $@

.venv/python:
	@test -n "$(PYTHON)" || { echo "pgsluice needs Python 3.11 or newer: install it, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "pgsluice needs Python 3.11 or newer; $(PYTHON) is $$("$(PYTHON)" -V 2>&1)" >&2; exit 1; }
	@"$(PYTHON)" -m venv .venv || { echo "this Python can't make virtual environments: install its venv package (Debian: python3-venv)" >&2; exit 1; }
	@touch $@
