# One virtual environment, pinned versions, and the commands that the README names.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin

# On two cores four threads cost more than they bring, and numbers are the same everywhere with one.
export OMP_NUM_THREADS ?= 2

.PHONY: demo test coverage test-all test-busy wheel lint types docs screenshots clean

demo: $(VENV)/.installed
	$(RUN)/acclimate demo vision

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n 2 $(PYTEST_ARGS)

# The same tests with half as much computing time again: which lines of src they run, at least 90 %.
coverage:
	$(MAKE) test PYTEST_ARGS="--cov --cov-report=term:skip-covered $(PYTEST_ARGS)"

# Random examples in place of the fixed ones; a failure prints how to repeat it.
test-all: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n 2 -m "slow or not slow" --timeout 14400 \
	  --hypothesis-profile random $(PYTEST_ARGS)

# Beside programs that want the processors too: no test may depend on how long things take.
test-busy: $(VENV)/.installed
	$(RUN)/python tools/beside_busy_loops.py 4 $(MAKE) test

# Builds both distributions (the wheel from the sdist) and tries the wheel where the repository is out of reach.
wheel: $(VENV)/.installed
	rm -rf dist
	$(RUN)/python -m build --outdir dist
	$(RUN)/python tools/check_wheel.py dist/acclimate-*.whl

lint: $(VENV)/.installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

types: $(VENV)/.installed
	$(RUN)/mypy

# Generated parts first, then the site: docs/_build/html/index.html. A warning is an error; nothing is fetched.
docs: $(VENV)/.installed
	$(RUN)/python tools/write_command_docs.py
	$(RUN)/sphinx-build -b html -n -W --keep-going -j 2 docs docs/_build/html

# The pictures of the web page in the documentation; needs Chromium.
screenshots: $(VENV)/.installed
	$(RUN)/python tools/screenshots.py

clean:
	rm -rf $(VENV) dist acclimate-demo .pytest_cache .mypy_cache .ruff_cache .coverage

# torch first and alone: a package that asks for a range of it would otherwise choose a build for GPUs.
$(VENV)/.installed: pyproject.toml constraints.txt $(shell find hosts/sam -type f -not -path "*/__pycache__/*")
	$(PYTHON) -c 'import sys; sys.exit("acclimate needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt ./hosts/sam
	touch $@
