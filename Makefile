SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LINT_PATHS := sb3_pathwise/ tests/ examples/ docs/
# Two worker processes of one torch thread each: more threads only slow small networks down.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

.PHONY: help demo test test-all fuzz kill-test soak doc lint type format check-codestyle commit-checks clean

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# One stamp per set of extras: `make demo` need not wait for the tools of `make test`.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

demo: $(VENV)/.installed-compare  ## train two routes on Pendulum-v1 with three seeds each, and report (minutes)
	$(BIN)/sb3-pathwise compare --algos pathwise_ac likelihood_ratio_ac --envs Pendulum-v1 --seeds 3 --timesteps 5000 \
		-params learning_starts:1000 --output runs/demo

test: $(VENV)/.installed-test  ## run the tests, except those that take minutes each
	$(PYTEST) -m "not slow" tests

test-all: $(VENV)/.installed-test  ## run every test
	$(PYTEST) tests

fuzz: $(VENV)/.installed-test  ## draw 2,000 new cases of spaces and arguments
	FUZZ_CASES=2000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_fuzz.py

kill-test: $(VENV)/.installed-test  ## kill trainings 20 times at random, 20 times while they save, and resume them (minutes)
	$(BIN)/python tests/kill_test.py random
	$(BIN)/python tests/kill_test.py writing

soak: $(VENV)/.installed-test  ## an hour of updates with every feature on: memory, speed, finiteness
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py

doc: $(VENV)/.installed-docs  ## build the documentation, warnings being errors: docs/_build/html/index.html
	$(BIN)/python -m sphinx -W --keep-going -n -q docs docs/_build/html

lint: $(VENV)/.installed-test  ## look for errors with ruff
	$(BIN)/ruff check $(wildcard $(LINT_PATHS))

type: $(VENV)/.installed-test  ## check the types with mypy
	$(BIN)/mypy

format: $(VENV)/.installed-test  ## sort the imports and reformat
	$(BIN)/ruff check --select I --fix $(wildcard $(LINT_PATHS))
	$(BIN)/ruff format $(wildcard $(LINT_PATHS))

check-codestyle: $(VENV)/.installed-test  ## what `make format` would change, without changing it
	$(BIN)/ruff check --select I $(wildcard $(LINT_PATHS))
	$(BIN)/ruff format --check $(wildcard $(LINT_PATHS))

commit-checks: format type lint  ## before a commit

clean:  ## remove the virtual environment and all caches
	rm -rf $(VENV) build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
