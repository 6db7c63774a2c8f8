# Evergreen on one machine. `make` shows what there is.
.DEFAULT_GOAL := help
.PHONY: help install up down status logs clean backup restore demo check unit test lint format lock bench chaos
.PHONY: load coverage workflows compose-check
EVERGREEN := .venv/bin/evergreen
# Each process has servers of its own: more than four would want more memory than they save time.
PYTEST := .venv/bin/python -m pytest --numprocesses logical --maxprocesses 4
# Without bytecode each of the many programs compiles what it imports at each start, for seconds.
export PYTHONDONTWRITEBYTECODE :=

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@printf '\n  Options go into ARGS, a name into NAME:\n'
	@printf '    make status ARGS=--json     make logs NAME=mlflow ARGS=-f     make bench NAME=serving\n'

install: ## Install what is missing: system packages, Python environment
	@deploy/bootstrap.sh

up: ## Start everything, train and deploy the models that have no version yet
	@since=$$(date +%s) && deploy/bootstrap.sh && exec $(EVERGREEN) up --since $$since $(ARGS)

down: ## Stop everything; data and secrets stay
	@$(EVERGREEN) down $(ARGS)

status: ## Each part: address, health, memory; each model: version served, since when
	@$(EVERGREEN) status $(ARGS)

logs: ## The last lines of every log, or of NAME's
	@$(EVERGREEN) logs $(NAME) $(ARGS)

clean: ## Stop everything and remove its state, after asking
	@$(EVERGREEN) clean $(ARGS)

backup: install ## Write all state but the secrets into FILE while everything runs (default: evergreen-TIME.tar)
	@$(EVERGREEN) backup $(if $(FILE),"$(FILE)") $(ARGS)

restore: install ## Make the state that of the backup FILE (FORCE=1: replace what is here); then `make up`
	@$(EVERGREEN) restore $(if $(FILE),"$(FILE)") $(if $(FORCE),--force) $(ARGS)

demo: ## Close the loop live, on a stack of its own (CONTROL=1: the world stays; SCENARIO=broken: a source breaks)
	@since=$$(date +%s) && deploy/bootstrap.sh && exec $(EVERGREEN) demo --since $$since \
	  --scenario $(if $(CONTROL),none,$(or $(SCENARIO),shift)) $(ARGS)

check: install ## Before each commit: lint, format, types, workflows, unit tests
	@$(MAKE) --no-print-directory --jobs 3 lint workflows unit

unit: install ## The tests that need no server
	$(PYTEST) tests/unit

test: check ## Every check: those, integration, end to end (options for pytest: ARGS)
	$(PYTEST) --no-loadscope-reorder --durations 20 tests/e2e tests/integration tests/model $(ARGS)

coverage: install ## Which lines of the product all tests run, in every process they start (options for pytest: ARGS)
	$(PYTEST) --cov --no-loadscope-reorder tests/e2e tests/integration tests/model tests/unit $(ARGS)

lint: install ## Lint, format check, types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: install ## Rewrite the code in the one format
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

workflows: install ## Check what GitHub, Renovate and pre-commit read (no network)
	@deploy/check_workflows.sh

lock: install ## Write requirements.lock anew for pyproject.toml; pins that fit stay (ARGS='--upgrade-package NAME')
	@deploy/lock.sh $(ARGS)

bench: install ## Measure (NAME=store, serving, shadow, maintenance or dags; without: all of them)
	.venv/bin/python -m benchmarks.run $(NAME) $(ARGS)

chaos: install ## Break everything around a service under 200 requests a second, account for each (NAME: one fault)
	.venv/bin/python -m tests.chaos $(NAME) $(ARGS)

load: install ## Load on NAME's running service, by locust's page (HEADLESS=1: a summary, and an exit code by its limits)
	@.venv/bin/python -m tests.load.run $(NAME) $(if $(HEADLESS),--headless) $(ARGS)

compose-check: install ## Bring docker-compose.yaml up for real, break it, upgrade it, take it down (NAME=profiles: its profiles)
	.venv/bin/python -m deploy.compose_check $(NAME)
