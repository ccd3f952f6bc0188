# make       install into .venv, run the pipeline
# make test  run the tests
# make lint  run the linter, the formatter and the type checker

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
INSTALL := .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: all test lint

all: .venv/installed
	@# Without version control, DVC has to be told so. config.local is git-ignored. A .git that git refuses to read, for
	@# example because it belongs to another user, is version control all the same.
	@[ -e .git ] || git rev-parse --git-dir >/dev/null 2>&1 || grep -qs no_scm .dvc/config.local || \
	    printf '[core]\n    no_scm = true\n' >> .dvc/config.local
	@echo 'Running the pipeline: dvc repro sample evaluate'
	@dvc repro sample evaluate
	@echo 'Running the rest of it, several stages side by side: lm cells'
	@lm cells
	@echo
	@echo 'The report on all of it is metrics/report.html. lm report prints what its sections show.'
	@echo
	@echo 'To try the model, activate the environment and continue a prompt:'
	@echo '  . .venv/bin/activate'
	@echo '  lm generate "Once upon a time"'

test: .venv/installed-test
	@OMP_NUM_THREADS=1 python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

lint: .venv/installed-dev
	@ruff check
	@ruff format --check
	@mypy

.venv/installed: pyproject.toml constraints.txt
	@echo 'Installing the packages into .venv (the first time takes a minute or two)'
	@$(PYTHON) -m venv .venv
	@$(INSTALL) .
	@python -m lm.report.dvc_plots
	@touch $@

.venv/installed-test: .venv/installed
	@echo 'Installing the packages for the tests'
	@$(INSTALL) '.[test]'
	@touch $@

.venv/installed-dev: .venv/installed
	@echo 'Installing the linter and the type checker'
	@$(INSTALL) '.[dev]'
	@touch $@
