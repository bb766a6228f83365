VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Bytecode only of what is imported: compiling all dependencies takes longer than the rest of the installation.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
unexport PYTHONDONTWRITEBYTECODE
# What `make reports` edits: files, or names of fetched data sets.
COUNTERFACT ?= counterfact
ZSRE ?= zsre
# Where the files of the release stand on the web, such as https://HOST/OWNER/factpatch/blob/v0.2.0; see CONTRIBUTING.md.
ADDRESS ?=

# llama.cpp, prebuilt for this platform, for the tests that serve a model with it.
ENGINES = @fugood/llama.node@1.7.15 @fugood/node-llama-$(shell node -p 'process.platform + "-" + process.arch')@1.7.15

.PHONY: help install demo test test-long engines hostile lint check format docs reports dist clean

help:
	@echo "make install  make .venv, with all that the other targets need"
	@echo "make demo     install, then edit the embedded model and undo the edit"
	@echo "make test     install, then run the tests"
	@echo "make test-long  run all tests, those too that take half a minute each"
	@echo "make engines  install llama.cpp with npm, for the tests that are skipped without it"
	@echo "make hostile  try altered files, kills, full disks and broken models (half an hour)"
	@echo "make lint     lint, format and types"
	@echo "make check    make lint, docs and test"
	@echo "make format   format the code"
	@echo "make docs     build the documentation site in build/site"
	@echo "make reports  run the published tables and analyses, and write their pages to build/reports (hours)"
	@echo "make dist     build the source archive and the wheel in dist"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[dev,docs]'
	touch $@ $(VENV)/.installed

install: $(VENV)/.installed-dev

demo: $(VENV)/.installed
	$(BIN)/factpatch demo

# As many tests at a time as there are cores, each on one thread; tests of one file run in one process, to share fixtures.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal --durations 10

test-long: export FACTPATCH_LONG = 1
test-long: test

engines:
	npm install --prefix build/engines --omit=optional --no-audit --no-fund $(ENGINES)

# tests/test_hostile.py tries a sample of it. File systems are mounted for it if the user may.
hostile: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hostile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Lint and docs take a core each, the tests all of them.
check: install
	$(MAKE) --jobs 2 lint docs
	$(MAKE) test

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Each command resumes where it was interrupted.
REPRODUCE = $(BIN)/factpatch reproduce $(1) --model smollm2-135m --batch-size 20 --text-facts 20 --variant published-contexts
reports: $(VENV)/.installed-dev
	mkdir -p build/reports
	$(call REPRODUCE,table2) --dataset $(COUNTERFACT) --facts 200 --out build/reports/table2
	$(call REPRODUCE,table5) --dataset $(COUNTERFACT) --facts 200 --out build/reports/table5
	$(call REPRODUCE,table2) --dataset $(ZSRE) --facts 100 --out build/reports/zsre
	$(BIN)/factpatch report build/reports/table2 build/reports/table5 build/reports/zsre --out build/reports/smollm2-135m.html
	$(BIN)/factpatch analyze all --model smollm2-135m --facts $(COUNTERFACT) --limit 50 --text-facts 5 --out build/reports/analysis

dist: | $(BIN)/python
	$(INSTALL) build
	$(BIN)/python tools/dist.py --address "$(ADDRESS)"

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
