# Everything happens in .venv; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint bench clean

demo: $(VENV)/.train ## train the default network, and say where its pictures are
	@if [ -f runs/demo/config.json ]; then $(RUN) -m train --run-dir runs/demo --resume; \
	else $(RUN) -m train --run-dir runs/demo; fi

test: $(VENV)/.dev ## run the tests
	$(RUN) -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev ## ruff and pyright
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

bench: $(VENV)/.dev ## speed of training against a bare scan and, where it is installed, PyTorch
	$(RUN) -m benchmarks.train

clean: ## remove the environment and what was built, but no runs
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/.train $(VENV)/.dev: $(VENV)/.%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.12 ...")'
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable ".[$*]"
	@touch $@
