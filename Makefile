PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# one thread a process: two-threaded torch slows down many-fold where another process runs; what a process has compiled
# serves the next ones, also where the shell's PYTHONDONTWRITEBYTECODE says otherwise
TEST_ENV := OMP_NUM_THREADS=1 PYDEVD_DISABLE_FILE_VALIDATION=1 PYTHONDONTWRITEBYTECODE=
# what neither trains nor starts a kernel, a browser or a cluster
FAST := $(addprefix tests/, test_lock.py test_memory.py test_text.py test_validation.py \
	bounds/test_ibp.py bounds/test_graph.py models/test_architectures.py data/test_run.py data/test_run_table.py \
	radius/rootfind/test_log_secant.py radius/test_metrics.py radius/rootfind/test_solvers.py training/test_config.py \
	training/test_parameters.py training/test_regularisers.py analysis/test_seeds.py analysis/test_tradeoff.py \
	analysis/test_equal_accuracy.py analysis/test_acr_breakdown.py visualization/test_style.py \
	visualization/test_fronts.py visualization/test_radius.py sweep/test_spec.py guides/test_layout.py)

.PHONY: help demo test test-fast fuzz bench bench-quick handouts docs lab clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: $(READY)  ## train on the embedded digits, draw the Pareto picture, print the table (2 minutes)
	$(BIN)/acertlab demo

# without its plugin the tests' processes need not load what nbval does, for a second each
test: $(READY)  ## lint, unit and property tests, and every notebook (about 14 minutes on two cores)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	export ACERTLAB_EXECUTED=$$(mktemp -d) $(TEST_ENV); \
	ACERTLAB_RUNS=$$(mktemp -d) $(BIN)/python -m pytest -n 2 --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=600 -p no:cacheprovider -p tests.helpers.executed_notebooks notebooks && \
	$(BIN)/python -m pytest -n 2 --dist worksteal -p no:nbval tests

test-fast: $(READY)  ## after an edit: lint, layout and what needs neither training nor notebooks (under a minute)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal $(FAST)

fuzz: $(READY)  ## bounds and radii of 10,000 random networks of all operators, other ones each night (about an hour)
	ACERTLAB_FUZZ=10000 $(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal --timeout 7200 tests/bounds/test_fuzz.py

bench: $(READY)  ## what bounds, search and training cost beside other tools (20 to 25 minutes, then as a table)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.bench

bench-quick: $(READY)  ## the same with smaller networks and fewer rounds (under 3 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.bench --quick

handouts: $(READY)  ## run every notebook and write it as an HTML page that needs no network, into handouts/ (10 minutes)
	$(TEST_ENV) $(BIN)/acertlab handouts handouts

docs: handouts  ## the reference of every public name, with the handouts as tutorials, into docs/html
	$(BIN)/python docs/build.py handouts docs/html

lab: $(READY)  ## open the notebooks in JupyterLab
	ACERTLAB_RUNS=$(CURDIR)/runs $(BIN)/jupyter lab --notebook-dir notebooks

clean:  ## remove the environment (runs and data stay)
	rm -rf .venv

$(READY): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python >= 3.11 is needed, this is %d.%d; try: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@# without its dependencies: it declares torch < 1.13, but runs on today's (see acertlab/bounds/crown/auto_lirpa_compat.py)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps auto_LiRPA==0.3
	@touch $@
