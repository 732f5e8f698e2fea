# Works with GNU make and a Python that has venv; everything else comes from PyPI into .venv.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo docs test services services-down browser controls soak check format-check lint layers mypy pyright user-types format bench clean

help:
	@echo "make demo     run the shop: services that never learn who listens"
	@echo "make test     run the tests"
	@echo "make browser  look for the browser that a test drives"
	@echo "make services start PostgreSQL and Kafka for the tests, without Docker; make services-down stops them"
	@echo "make docs     build the documentation's site in ./site"
	@echo "make controls seed each known bug and see that it is caught"
	@echo "make soak     MINUTES=30: kill, stop and restart processes under load, and judge what they did (SEED=n replays)"
	@echo "make check    format, lint, layers, types (make -k check goes on after a failure)"
	@echo "make format   format the code and sort its imports"
	@echo "make bench    measure, and write bench.json"
	@echo "make clean    remove what these commands made, .venv included"

# The stamp is what makes the environment new when pyproject.toml changes. It is touched last, so that an installation
# that was broken off is made again.
.venv/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Everlog needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.venv/.installed-bench: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@touch $@

demo: .venv/.installed
	$(BIN)/python examples/shop/demo.py $(ARGS)

# A warning is an error: mkdocs.yml says `strict`.
docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean
	@echo "open site/index.html; its search needs a server: $(BIN)/python -m http.server --bind 127.0.0.1 --directory site"

# A browser for the test of the web example. Where a missing one fails the tests, it is installed; elsewhere that test is skipped.
browser:
	@command -v "$${EVERLOG_CHROMIUM:-chromium}" chromium-browser google-chrome >/dev/null || { \
	  if [ "$$EVERLOG_REQUIRE_SERVERS" = 1 ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	  else echo "no Chromium is here: install it with your system's packages, or name one in EVERLOG_CHROMIUM"; fi; }

# Real servers, on loopback, under one folder. ARGS chooses: ARGS=postgres.
services: .venv/.installed
	@$(BIN)/python -m tests.services up $(ARGS)

services-down: .venv/.installed
	@$(BIN)/python -m tests.services down $(ARGS)

# Where servers are not required, tests of one that cannot be started are skipped.
test: .venv/.installed browser
	@$(BIN)/python -m tests.services try
	$(BIN)/python -m pytest $(ARGS)

# Bugs that break one promise each, seeded into the processes of a short campaign: the judge has to catch every one.
controls: .venv/.installed
	$(BIN)/python -m tests.campaign.controls $(ARGS)

MINUTES ?= 30
soak: .venv/.installed
	$(BIN)/python -m tests.campaign --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

check: format-check lint layers mypy pyright user-types

format-check: .venv/.installed
	$(BIN)/ruff format --check .

lint: .venv/.installed
	$(BIN)/ruff check .

layers: .venv/.installed
	$(BIN)/lint-imports

mypy: .venv/.installed
	$(BIN)/mypy

pyright: .venv/.installed
	$(BIN)/pyright

# Typed code as users write it: what is right passes, and each seeded mistake is reported, by both checkers.
user-types: .venv/.installed
	$(BIN)/python typing_checks/check.py

format: .venv/.installed
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

# About a quarter of an hour. ARGS chooses: ARGS="--only latency --pairs 15", ARGS="--events 100000", ARGS=--help.
bench: .venv/.installed-bench
	$(BIN)/python -m benchmarks $(ARGS)

# `.everlog` stays: it may hold somebody's events.
clean:
	rm -rf .venv build dist site bench.json .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
