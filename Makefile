# Each target builds .venv; python3, pip and make are the only requirements.
PYTHON ?= python3
BIN := .venv/bin
# The page's tests need Chromium. Without one, the suite skips them and says so.
BROWSER := $(shell for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && echo ,browser && break; done)

# Compiled tests and modules are kept, whatever the environment says: each worker compiles 60,000 lines otherwise.
export PYTHONDONTWRITEBYTECODE :=

# Python files that differ from main, also uncommitted ones; of eve_vl/x/y.py, tests/x/test_y*.py is run.
CHANGED := { git diff --name-only --diff-filter=d $$(git merge-base HEAD origin/main 2>/dev/null || echo HEAD); git ls-files --others --exclude-standard; }

.PHONY: demo test quick suite docs lint format clean

demo: .venv/.core       ## pre-train, fine-tune and evaluate on built-in data, write a report
	$(BIN)/eve demo

test: .venv/.dev        ## lint, types and the test suite, in parallel
	$(MAKE) --jobs=2 lint suite

quick: .venv/.dev       ## ruff, and the tests of changed files: about a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	tests=$$($(CHANGED) | sed -nE -e 's,^eve_vl/(.*/)?([^/]+)\.py$$,tests/\1test_\2*.py,p' -e 's,^(tests/.*test_[^/]+\.py)$$,\1,p' | sort -u); \
	$(BIN)/python -m pytest -q $$(ls $$tests tests/test_architecture.py tests/test_plain_code.py tests/test_language.py 2>/dev/null | sort -u)

# By file, because fixtures are shared within a file; in order of names, which ends with short files. By their number of tests,
# slow files with a single test would come last, and one worker would wait for the other.
suite: .venv/.dev       ## the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

docs: .venv/.docs       ## build the docs site in site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build  # silences a note on MkDocs 2 (docs/design_choices.md)

lint: .venv/.dev        ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	NODE_OPTIONS=--max-semi-space-size=64 $(BIN)/basedpyright  # collects garbage less often: 9 % less time

format: .venv/.dev      ## fix and format the code
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
