# Each target is sufficient alone on a bare machine with Python 3.10 or newer.
#   PYTHON=python3.11       another interpreter
#   TORCH="torch==2.13.0"   what to install where no PyTorch is found; an existing one is used and never replaced
#   VENV=.venv              where the environment goes

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
export TORCH

.PHONY: help test signoff lint clean

help:
	@echo "make test      the whole test suite (pytest -n auto)"
	@echo "make signoff   run every stage that this machine can run; the decision is in signoff/signoff.html"
	@echo "make lint      ruff and mypy"
	@echo "make clean     remove the environment, caches, records and sign-off pages"

test:
	$(PYTHON) .ci/environment.py $(VENV) test report layers evals
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto

# Every stage that this machine can run, then the decision, also where a kernel failed.
# CLAIM=FILE signs one claim, POLICY=NAME|FILE says what it needs. make itself ends with 2 whenever a command does not
# end with 0; `python -m validators machine` ends with the status of the decision (1 NOT SIGNED, 3 UNTESTED).
signoff:
	$(PYTHON) .ci/environment.py $(VENV) report
	$(RUN) -m validators machine --out signoff $(if $(CLAIM),--claim $(CLAIM)) $(if $(POLICY),--policy $(POLICY))

lint:
	$(PYTHON) .ci/environment.py $(VENV) test report layers evals dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) signoff records .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
