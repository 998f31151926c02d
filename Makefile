# Two commands for a new user: `make demo` and `make test`. The README shows the plain commands behind them.
PYTHON ?= python3
DEMO ?= demo
SEED ?= 0
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint clean

demo: .venv/.run
	@rm -rf $(DEMO)/raw.partial
	@test -d $(DEMO)/raw || .venv/bin/python scripts/make_miniature.py --out=$(DEMO)/raw --datasets=gta5,cityscapes
	@for dataset in gta5 cityscapes; do \
	  .venv/bin/python scripts/convert_dataset.py --dataset=$$dataset --raw_dir=$(DEMO)/raw/$$dataset \
	    --data_dir=$(DEMO)/data || exit 1; \
	done
	@.venv/bin/python scripts/run_recipe.py --config=configs/gta5_to_cityscapes.py:size=miniature \
	  --config.data_dir=$(DEMO)/data --config.seed=$(SEED) --workdir=$(DEMO)/run_seed$(SEED)

test: .venv/.test
	.venv/bin/python -m pytest -q
	@echo "all tests passed; slow ones: .venv/bin/python -m pytest -m slow"

lint: .venv/.test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.venv/bin/python:
	@echo "making the virtual environment .venv"
	@$(PYTHON) -m venv .venv

.venv/.run: setup.cfg constraints.txt | .venv/bin/python
	@echo "installing fada-jax and what it needs into .venv (a minute or two)"
	@$(PIP) -e .
	@touch $@

.venv/.test: setup.cfg constraints.txt | .venv/bin/python
	@echo "installing fada-jax with its test extra into .venv (a few minutes)"
	@$(PIP) -e ".[test]"
	@# Cityscapes' own evaluation, which scores are tested against; of what it asks for, "typing" breaks newer Pythons.
	@$(PIP) --no-deps cityscapesScripts pyquaternion
	@touch $@ .venv/.run

clean:
	rm -rf .venv $(DEMO)
