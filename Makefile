# GNU make, Linux and macOS. `make` lists the targets.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help env demo web test lint bench accuracy finetune-demo clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(INSTALLED) ## Make the environment .venv with all that the other targets need

$(INSTALLED): pyproject.toml constraints.txt GSMedSegLib/requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 10) else "GSMedSeg needs Python 3.10 or newer, $(PYTHON) is %d.%d. Name another one: make env PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: env ## Segment a made-up image from clicks; the result goes to build/demo
	$(VENV)/bin/gsmedseg demo build/demo

web: env ## Open the browser app with a made-up image; ARGS="--port 9000" and others as of gsmedseg web
	$(VENV)/bin/gsmedseg web --example $(ARGS)

test: env ## Run the tests, two at a time; ARGS="-k click" picks some, ARGS="-n 0" runs one at a time
	$(RUN) -m pytest -n 2 --dist worksteal $(ARGS)

lint: env ## Check style, format and types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

bench: env ## Time engine, challenge case and training step beside MONAI's, and the service; the figures go to build/bench
	$(RUN) -m Testing.benchmarks.engine
	$(RUN) -m Testing.benchmarks.challenge
	$(RUN) -m Testing.benchmarks.training
	$(RUN) -m Testing.benchmarks.service

accuracy: env ## Simulate clicks on the development data; the figures go to build/accuracy; ARGS="--help" says what else
	$(RUN) -m Testing.benchmarks.accuracy $(ARGS)

DATA ?= ../shared/data/dev/msd_hippocampus
finetune-demo: env ## Fine-tune the compact weights on a few cases, DATA=FOLDER; the result goes to build/finetune-demo
	$(RUN) -m Training.finetune Training/configs/demo.toml --data $(DATA)

clean: ## Remove build/ and the caches; .venv stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find GSMedSeg GSMedSegLib Training Testing -name __pycache__ -prune -exec rm -rf {} +
