# Needs Python 3.10 to 3.13 and make. PYTHON chooses the interpreter of a new .venv.
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Locks keep the versions they have; `make lock UPGRADE=--upgrade` takes the newest.
UPGRADE ?=
COMPILE = $(BIN)/uv pip compile pyproject.toml --quiet --universal --generate-hashes --python-version 3.10 \
	--no-emit-index-url --custom-compile-command "make lock" $(UPGRADE)

.DELETE_ON_ERROR:
.PHONY: help venv demo test test-engines integration images docs figures lint types format templates lock clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## Install the pinned dependencies and this project into .venv.

# setuptools and wheel come first and the project last, both without build isolation, which would fetch what no lock hashes. The lock is
# whole, so nothing is resolved: pip would look at newer versions for the extras that packages ask of each other, and refuse what no lock pins.
$(STAMP): pyproject.toml setup.py requirements.lock requirements-dev.lock
	$(PYTHON) -m venv $(VENV)
	sed -nE '/^(setuptools|wheel)==/,/# via/p' requirements-dev.lock | \
		$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r /dev/stdin
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --no-build-isolation -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	$(BIN)/python -m pip check
	@touch $@

demo: $(STAMP)  ## Run the whole story on real digits; the report is in demo-output.
	$(BIN)/tracin demo --output=demo-output --overwrite

test: $(STAMP)  ## Run the tests.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not integration and not images" --ignore=tests/engines

# Needs Go, which fetches the module of the same version as the installed package.
PRISM := $(CURDIR)/.engines/prism
$(PRISM): $(STAMP)
	version=$$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("apache-beam"))') && \
		GOBIN=$(dir $(PRISM)) go install github.com/apache/beam/sdks/v2/go/cmd/prism@v$$version
	@touch $@

test-engines: $(STAMP) $(PRISM)  ## Run the tests on other runners than the in-process one; needs Go.
	PRISM=$(PRISM) $(BIN)/python -m pytest tests/engines

integration: $(STAMP)  ## Run the tests on Fashion-MNIST, one after another.
	$(BIN)/python -m pytest -rs -m integration --ignore=tests/engines

images: $(STAMP)  ## Carry out the images' installing steps in a new environment; fetches some gigabytes.
	$(BIN)/python -m pytest -n 0 -m images tests/templates

# Nitpicky and with warnings as errors: a broken link, reference or anchor, a missing table of figures, a flag without help or a public
# name without docstring fails.
docs: $(STAMP)  ## Build the site, strictly; it is in build/site.
	PYTHONPATH=$(CURDIR) $(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet docs build/site

figures: $(STAMP)  ## Put the benchmarks' tables into README and pages.
	$(BIN)/python docs/_ext/figures.py

lint: $(STAMP)  ## Check style, format and the layers.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(STAMP)  ## Check types.
	$(BIN)/mypy

format: $(STAMP)  ## Format, and mend what the linter can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

templates: $(STAMP)  ## Write the Flex Templates' metadata again from the flags.
	$(BIN)/python -m templates.metadata

# The locks of what runs are compiled under the other's versions, so that the images run what was tested. All extras but gpu are in that:
# nobody needs 3 GB of NVIDIA's libraries to develop.
lock:  ## Write the locks again from pyproject.toml.
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) --extra dev --extra demo --extra benchmarks --output-file requirements-dev.lock
	$(COMPILE) --constraint requirements-dev.lock --output-file requirements.lock
	$(COMPILE) --constraint requirements-dev.lock --extra gpu --output-file requirements-gpu.lock

clean:  ## Remove .venv, caches, builds and the demo's output.
	rm -rf $(VENV) .engines build dist *.egg-info demo-output .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find pipeline transforms templates tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
