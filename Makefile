# Everything runs inside .venv, which is built on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := src scripts spaces tests
# Waiting threads sleep: on few or busy cores spinning ones slow PyTorch down several times.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test style check hub-check bench clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("amd_hf needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --prefer-binary -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

demo: $(STAMP)  ## Segments real images and a video with the bundled checkpoint; INPUT=path for your own.
	$(BIN)/python scripts/make_demo.py $(if $(INPUT),--input "$(INPUT)")

test: $(STAMP)  ## The test suite; ARGS="--runslow" adds the slow tests.
	$(BIN)/python -m pytest $(ARGS)

style: $(STAMP)  ## Formats and fixes in place.
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

check: $(STAMP)  ## Lint, format, types and spelling; never edits.
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/codespell $(SOURCES) docs README.md model_card.md CHANGELOG.md SECURITY.md

hub-check: $(STAMP)  ## Builds the wheel, installs it into a clean environment and loads from it offline.
	$(BIN)/python scripts/hub_check.py

bench: $(STAMP)  ## Measures speed beside the machine's own limits.
	$(BIN)/python scripts/benchmark.py --into docs/performance.md

clean:
	rm -rf $(VENV) build dist demo_output
