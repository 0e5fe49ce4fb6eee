# make release   set up what is missing, then release the example three times in the sandbox
# make test      set up what is missing, then pass the tests
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export PYTHONPATH := $(CURDIR)/plugins:$(CURDIR)/include

.DEFAULT_GOAL := help
.PHONY: help setup lock check test unit walk faults release walkthrough up down status env screens picture schema dashboards audit clean

help: ## what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## the virtual environment with every package, and Prometheus

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v == (3, 11) else f"Python 3.11 is needed and $(PYTHON) is {v[0]}.{v[1]}; name one: make PYTHON=/path/to/python3.11 …")'
	@echo "Installing the packages of requirements.txt into $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --requirement requirements.txt
	@printf '%s\n' "$(CURDIR)/plugins" "$(CURDIR)/include" > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/model_release.pth
	@$(BIN)/python -m sandbox.programs
	@touch $@

lock: ## requirements.txt anew from requirements.in
	@rm -rf .cache/lock && $(PYTHON) -m venv .cache/lock && $(PYTHON) -m venv .cache/lock/uv
	@# uv finds in seconds a set of versions that pip searches for longer than anybody waits; pip installs that set.
	@.cache/lock/uv/bin/python -m pip install -qq uv==0.13.9
	@.cache/lock/uv/bin/uv pip compile --quiet --python-version 3.11 --no-annotate requirements.in --output-file .cache/lock/set.txt
	@.cache/lock/bin/python -m pip install -qq --requirement requirements.in --constraint .cache/lock/set.txt
	@{ echo "# Made by 'make lock' from requirements.in; every package exactly as tested. Do not edit."; \
	   .cache/lock/bin/python -m pip freeze | sed 's/+cpu$$//'; } > requirements.txt
	@.cache/lock/bin/python .ci/audit.py --write
	@rm -rf .cache/lock

check: setup ## ruff and mypy strict
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

unit: setup ## the tests that start nothing; under a minute
	@$(BIN)/python -m pytest -m "not stack and not e2e and not simulation and not faults"

test: check audit ## checks, units, real parts, simulations, the page in a browser, whole releases and the worst faults
	@$(BIN)/python tests/run.py

walk: setup ## the long walks as tests: the mission in five stages, Standard mode, the page during real releases (half an hour)
	@$(BIN)/python -m pytest -m walk

faults: setup ## break parts during releases; writes tests/faults/README.md (an hour)
	@FAULTS_TABLE=tests/faults/README.md $(BIN)/python -m pytest tests/faults

release: setup ## release the example: a first version, a better one, a bad one
	@$(BIN)/python -m sandbox release

walkthrough: setup ## the mission in five stages; docs/walkthrough.md and its charts anew
	@$(BIN)/python -m sandbox walkthrough --page docs/walkthrough.md

up: setup ## the sandbox and Airflow, left running
	@$(BIN)/python -m sandbox up --airflow

down: ## stop them
	@$(BIN)/python -m sandbox down

status: setup ## what runs, and where
	@$(BIN)/python -m sandbox status

env: ## .env with random secrets, for docker compose
	@$(PYTHON) include/images/make_env.py

screens: setup ## docs/screens anew: the Releases page during real releases
	@SCREENS=docs/screens $(BIN)/python -m pytest tests/browser/test_live.py

picture: setup ## docs/release.svg anew: the last release of `make release`, as it stands on the terminal
	@$(BIN)/python -m sandbox release --picture docs/release.svg

schema: setup ## include/models/model.schema.json anew from the code
	@$(BIN)/python -m model_release.spec > include/models/model.schema.json

dashboards: setup ## include/dashboards anew from the code
	@$(BIN)/python -m model_release.metrics.dashboards

audit: setup ## known holes in the packages, where the database answers; what is installed, against the lock
	@$(BIN)/python .ci/audit.py

clean: down ## forget what was built or released here; other candidates than the example's stay
	@rm -rf .sandbox candidates/digits candidates/evaluation/digits
