# `make` sets everything up, runs the pipeline and shows what came of it; `make test` sets up and runs the tests.

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: all test

all: .venv/installed
	@# dvc wants to know when a copy of the project is under no version control; config.local is git-ignored.
	@git rev-parse --git-dir >/dev/null 2>&1 || printf '[core]\n    no_scm = true\n' > .dvc/config.local
	@dvc repro
	@python -m lm report

test: .venv/installed-test
	@python -m pytest

.venv/installed: pyproject.toml constraints.txt
	@echo 'installing into .venv: a minute or two, the first time'
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable . --constraint constraints.txt
	@touch $@

.venv/installed-test: .venv/installed
	@echo 'installing what the tests need'
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' --constraint constraints.txt
	@touch $@
