# make release   set up what is missing, then release the example three times in the sandbox
# make test      set up what is missing, then pass the tests
SHELL := /bin/bash
VENV := .venv
# The environment's own, else the first that works: a name on the PATH may be a pyenv shim with nothing behind it.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
ifndef PYTHON
PYTHON := $(shell for one in $(VENV)/bin/python $$(type -ap python3.11 python3.12 python3.13 python3); do \
	"$$one" -c '$(FITS)' 2>/dev/null && echo "$$one" && break; done)
endif
BIN := $(VENV)/bin
export VENV
export PYTHONPATH := $(CURDIR)/plugins:$(CURDIR)/include
# A container's image may forbid it, and then each of some hundred processes compiles torch or Airflow anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup kserve lock check test unit walk models faults soak release walkthrough up down status env screens picture schema plan calibrate dashboards audit clean

help: ## what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## the virtual environment with every package of the lock, and Prometheus; PYTHON=… and TORCH=cpu or cuda choose
	@[ -n "$(PYTHON)" ] && "$(PYTHON)" -c '$(FITS)' 2>/dev/null || { \
	 echo "setup: Python 3.11, 3.12 or 3.13 is needed, and $(if $(PYTHON),$(PYTHON) says '$$("$(PYTHON)" -V 2>&1 | head -1)',none is on the PATH); name one: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }
	@"$(PYTHON)" .ci/install.py

lock: ## uv.lock, requirements.txt and the images' lists anew from pyproject.toml; UPGRADE=1 takes the newest versions
	@uv=$$("$(PYTHON)" .ci/install.py uv | tail -1) && unset UV_FIND_LINKS && \
	 $$uv lock $(if $(UPGRADE),--upgrade) && \
	 { echo "# Made by 'make lock' from uv.lock; every package exactly as tested, and no other: pip takes it with --no-deps. Do not edit."; \
	   $$uv export --quiet --frozen --no-hashes --no-annotate --no-header; } > requirements.txt
	@uv=$$("$(PYTHON)" .ci/install.py uv | tail -1) && cd include/images/serving-kserve && \
	 grep -E '^(torch|numpy|pillow|pillow-heif)==' ../../../requirements.txt > .constraints && \
	 $$uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade) --constraint .constraints \
	  --output-file requirements.txt requirements.in; code=$$?; rm -f .constraints; exit $$code
	@"$(PYTHON)" .ci/lists.py

check: setup ## ruff and mypy strict
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

unit: setup ## the tests that start no program
	@$(BIN)/python -m pytest -m "not stack and not e2e and not simulation and not faults"

test: check ## checks, units, real parts, simulations, the page in a browser, whole releases and the worst faults
	@$(BIN)/python tests/run.py

walk: setup ## the long walks as tests: the mission in five stages, Standard mode, a registry, a shadow, the page during real releases (half an hour and more)
	@$(BIN)/python -m pytest -m walk

faults: setup ## break parts during releases; writes tests/faults/README.md (an hour)
	@FAULTS_TABLE=tests/faults/README.md $(BIN)/python -m pytest tests/faults

soak: setup ## 30 releases with faults at random, and a watcher outside of Airflow; benchmarks/soak.json (an hour)
	@$(BIN)/python benchmarks/soak.py

models: setup ## every image classifier of the installed transformers beside its pipeline; docs/models.md anew
	@$(BIN)/python tests/models

kserve: setup ## KServe's own model server, in an environment of its own (.venv-kserve)
	@"$(PYTHON)" .ci/install.py kserve

release: setup $(if $(filter kserve,$(RUNTIME)),kserve) ## release the example: a first version, a better one, a bad one; RUNTIME=kserve serves it by KServe's own server, STORY=wrong with a bad one that only its answers tell
	@$(BIN)/python -m sandbox release $(if $(RUNTIME),--runtime $(RUNTIME)) $(if $(STORY),--story $(STORY)) $(ARGS)

walkthrough: setup ## the mission in five stages; docs/walkthrough.md and its charts anew
	@$(BIN)/python -m sandbox walkthrough --page docs/walkthrough.md

up: setup ## the sandbox and Airflow, left running
	@$(BIN)/python -m sandbox up --airflow $(ARGS)

down: ## stop them
	@[ ! -e .sandbox ] || $(BIN)/python -m sandbox down

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

plan: setup ## how long a release of MODEL=… would need, and what would make it faster; ARGS=--json, ARGS=--sandbox, …
	@[ -n "$(MODEL)" ] || { echo "plan: name the model: make plan MODEL=digits" >&2; exit 1; }
	@$(BIN)/python -m model_release plan $(MODEL) $(ARGS)

calibrate: setup ## limits for MODEL=… from its own past; ARGS=--write puts them into the model file
	@[ -n "$(MODEL)" ] || { echo "calibrate: name the model: make calibrate MODEL=digits" >&2; exit 1; }
	@$(BIN)/python -m model_release calibrate $(MODEL) $(ARGS)

dashboards: setup ## Grafana's dashboards, a folder for each profile; DIR=… says where, ./dashboards unless said
	@$(BIN)/python -m model_release.metrics.dashboards $(or $(DIR),dashboards)

audit: setup ## known holes in the packages of the lock; nobody's word where the database cannot be reached
	@$(BIN)/pip-audit --requirement requirements.txt --no-deps --disable-pip --vulnerability-service osv 2> .cache/audit.log || { \
	 grep -q ConnectionError .cache/audit.log && echo "audit: the OSV database gives no answer, so nobody was asked" >&2 || cat .cache/audit.log >&2; exit 1; }

clean: down ## forget what was built or released here; other candidates than the example's stay
	@rm -rf .sandbox candidates/digits candidates/digits-scans candidates/evaluation/digits candidates/samples/digits-scans
