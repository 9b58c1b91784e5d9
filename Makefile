# make run    the OpenRubrics replication on a laptop, from nothing
# make test   everything that CI runs
# make docs   the site, into _site/
# make lab    JupyterLab on the notebooks
PYTHON ?= python3
VENV ?= .venv
RECIPE ?= laptop
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt

# Tokenizers warn about forks that papermill's kernels never make.
export TOKENIZERS_PARALLELISM = false

# Tests keep their store and model in the checkout, so that no test is answered from an older run.
test model nbdev-test pytest smoke: export RUBRICLAB_CACHE_DIR := $(or $(RUBRICLAB_CACHE_DIR),$(CURDIR)/.cache)

.PHONY: run test prepare model vllm-env docs lab check-notebooks nbdev-test pytest smoke links clean

run: $(VENV)/.run
	$(BIN)/python -m rubriclab.engines.bundled
	$(BIN)/rubriclab run openrubrics --recipe $(RECIPE)

test:
	@$(MAKE) --no-print-directory --jobs=2 prepare
	@$(MAKE) --no-print-directory check-notebooks nbdev-test pytest smoke
	@echo "make test: all five parts passed"

# What takes one core each, two at a time: the environments, the model, and the site with its links
prepare: vllm-env model links

model: $(VENV)/.dev
	$(BIN)/python -m rubriclab.engines.bundled

vllm-env:
	$(PYTHON) tests/vllm_env.py

check-notebooks: $(VENV)/.dev
	$(BIN)/python tests/check_notebooks.py

nbdev-test: model
	OMP_NUM_THREADS=1 $(BIN)/python tests/run_module_notebooks.py

pytest: $(VENV)/.dev vllm-env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

smoke: $(VENV)/.dev
	$(BIN)/python tests/run_experiments.py

docs: $(VENV)/.dev
	$(BIN)/smalldocs render --quiet .
	@echo "the site is in _site/index.html"

links: $(VENV)/.dev
	$(BIN)/smalldocs check .

lab: $(VENV)/.run
	$(BIN)/jupyter lab nbs

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25"

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[hf,lab]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[hf,lab,api,docs,dev]"
	@touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) .venv-vllm _site dist build
