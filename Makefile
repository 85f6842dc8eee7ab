# make demo   install into .venv, then compare the learned model with the simulators as oracle
# make test   install with the development extras, then run the fast tests: every subsystem, in under ten minutes
# make test-slow   run the tests with the mark slow
# make lint   ruff (rules and format) and pyright
# make docs   build the documentation into .cache/site, with warnings as errors
# make clean  remove the virtual environment, caches and builds
#
# Overridable: PYTHON (3.11 or newer), VENV, EXTRAS (e.g. EXTRAS=cuda,warp on a GPU), ARGS (passed on to the command),
# JOBS (test processes).

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= mjx,warp
ARGS ?=
JOBS ?= 2

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One stamp per set of extras: a second run installs nothing, and another set is added to the same environment.
comma := ,
DEMO_STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
TEST_STAMP := $(VENV)/.installed-dev-mjx-warp-mujoco-warp-log-sweep
DOCS_STAMP := $(VENV)/.installed-docs-$(subst $(comma),-,$(EXTRAS))

.PHONY: demo test test-slow lint docs clean

demo: $(DEMO_STAMP)
	$(BIN)/python benchmarks/oracle_vs_learned.py $(ARGS)

# A file's tests share a process, and with it what they compile and train.
test: $(TEST_STAMP)
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile $(ARGS)

test-slow: $(TEST_STAMP)
	$(BIN)/python -m pytest -m slow -n $(JOBS) --dist loadfile $(ARGS)

# All three run even when one finds something.
lint: $(TEST_STAMP)
	@status=0; set -x; \
	  $(BIN)/ruff check . || status=1; \
	  $(BIN)/ruff format --check . || status=1; \
	  $(BIN)/pyright --pythonpath $(BIN)/python || status=1; \
	  exit $$status

# Pages are made from the code, so its backends are installed too. The variable silences an advertisement.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet $(ARGS)
	@echo "documentation: .cache/site/index.html"

clean:
	rm -rf $(VENV) .venv-ci .cache .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A half-made environment would pass for a finished one the next time.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "mage_diffsim needs Python 3.11 or newer and $(PYTHON) is not:" \
	    "name another with make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(DEMO_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[$(EXTRAS)]'
	@touch $@

$(TEST_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev,mjx,warp,mujoco-warp,log,sweep]'
	@touch $@

$(DOCS_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[docs,$(EXTRAS)]'
	@touch $@
