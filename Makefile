# Every target builds .venv by itself; only python3, pip and make are needed.
PYTHON ?= python3
BIN := .venv/bin
# The page's tests drive a Chromium. Where there is none they are skipped, which the suite says at its end.
BROWSER := $(shell for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && echo ,browser && break; done)

.PHONY: demo test suite docs lint format clean

demo: .venv/.core       ## pre-train, fine-tune, evaluate on built-in data, write a report
	$(BIN)/eve demo

test: .venv/.dev        ## lint, types and the whole test suite, at once: types take one core for a minute
	$(MAKE) --jobs=2 lint suite

suite: .venv/.dev       ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile  # files, for their fixtures are shared within one

docs: .venv/.docs       ## the docs site, in site/; any broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build  # what it warns of: docs/choices.md

lint: .venv/.dev        ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: .venv/.dev      ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/.core: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.dev: .venv/.core
	$(BIN)/python -m pip install --quiet --editable '.[dev$(BROWSER)]'
	touch $@

.venv/.docs: .venv/.core
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:                  ## remove the virtual environment, site and caches (never runs/)
	rm -rf .venv build site *.egg-info .pytest_cache .ruff_cache
