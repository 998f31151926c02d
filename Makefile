# Two commands for a new user: `make demo` and `make test`. The README shows the plain commands behind them.
PYTHON ?= python3
DEMO ?= demo
REHEARSAL ?= rehearsal
SEED ?= 0
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test rehearsal lint docs docs-numbers clean

demo: .venv/.run
	@.venv/bin/python -m fada_jax demo --out=$(DEMO) --seed=$(SEED)

test: .venv/.test
	.venv/bin/python -m pytest -q --numprocesses=2 --dist=loadfile --no-loadscope-reorder
	@echo "all tests passed; slow ones: .venv/bin/python -m pytest -m slow"

rehearsal: .venv/.test
	@.venv/bin/python scripts/rehearse.py --out=$(REHEARSAL)

lint: .venv/.test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

docs: .venv/.docs
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet --site-dir=build/site
	@echo "documentation: build/site/index.html"

docs-numbers: .venv/.run
	@.venv/bin/python scripts/config_reference.py
	@.venv/bin/python scripts/docs_numbers.py

.venv/bin/python:
	@echo "making the virtual environment .venv"
	@$(PYTHON) -m venv .venv

.venv/.run: setup.cfg constraints.txt | .venv/bin/python
	@echo "installing fada-jax and what it needs into .venv (a minute or two)"
	@$(PIP) -e ".[train,report,input]"
	@touch $@

.venv/.test: setup.cfg constraints.txt | .venv/bin/python
	@echo "installing fada-jax with its test extra into .venv (a few minutes)"
	@$(PIP) -e ".[test]"
	@# Cityscapes' own evaluation, which scores are tested against; of what it asks for, "typing" breaks newer Pythons.
	@$(PIP) --no-deps cityscapesScripts pyquaternion
	@touch $@ .venv/.run

.venv/.docs: setup.cfg constraints.txt | .venv/.run
	@echo "installing what builds the documentation into .venv"
	@$(PIP) -e ".[docs]"
	@touch $@

clean:
	rm -rf .venv $(DEMO) $(REHEARSAL)
