# make release   set up what is missing, then release the example three times in the sandbox
# make test      set up what is missing, then pass the tests
SHELL := /bin/bash
# The first that runs: CPU wheels of PyTorch are most often at hand for 3.11. (A shim may be there and run nothing.)
PYTHON ?= $(shell for one in python3.11 python3.12 python3.13 python3; do $$one -c '' 2>/dev/null && echo $$one && break; done)
VENV := .venv
BIN := $(VENV)/bin
export PYTHONPATH := $(CURDIR)/plugins:$(CURDIR)/include

.DEFAULT_GOAL := help
.PHONY: help setup lock check test unit walk faults release walkthrough up down status env screens picture schema dashboards audit clean

help: ## what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## the virtual environment with every package, and Prometheus
	@$(PYTHON) include/make_venv.py

UV := $(or $(shell command -v uv),.cache/uv/bin/uv)
# Of PyPI's build of PyTorch alone: which of them a machine needs, its torch says itself.
CUDA = $(shell $(BIN)/python -c "import sys; sys.path.insert(0, 'include'); import make_venv; print(*make_venv._only_for_cuda())")

lock: setup ## uv.lock and requirements.txt anew from pyproject.toml; NAME=… takes the newest of one package
	@env -u UV_FIND_LINKS $(UV) lock --quiet $(if $(NAME),--upgrade-package $(NAME))
	@{ echo "# Made by 'make lock' from pyproject.toml: uv.lock for pip, and for the images. Do not edit."; \
	   $(UV) export --quiet --frozen --no-hashes --no-annotate --no-header $(foreach one,$(CUDA),--no-emit-package $(one)); } > requirements.txt

check: setup ## ruff and mypy strict
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

unit: setup ## the tests that start nothing; under a minute
	@$(BIN)/python -m pytest -m "not stack and not e2e and not simulation and not faults"

test: check ## checks, units, real parts, simulations, the page in a browser, whole releases and the worst faults
	@mkdir -p .cache
	@# Whole releases mostly wait, and all the rest mostly counts: side by side they take half the time on two cores.
	@$(BIN)/python -m pytest -m "not e2e and not faults and not walk" > .cache/rest.log 2>&1 & rest=$$!; \
	 $(BIN)/python -m pytest -m "e2e and not faults and not walk"; releases=$$?; \
	 wait $$rest; rest=$$?; cat .cache/rest.log; exit $$((releases || rest))

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

audit: setup ## known holes in the packages, as their database knows them
	@$(BIN)/pip-audit --requirement requirements.txt --no-deps --disable-pip

clean: down ## forget what was built or released here; other candidates than the example's stay
	@rm -rf .sandbox candidates/digits candidates/evaluation/digits
