# `make serve` and `make test` work from a fresh clone: they need Python 3.11 or newer, nothing else.
#
#   make serve PYTHON=python3.12 DEVICE=auto SERVE='--port 9000 --max-model-len 512'

PYTHON ?= python3
VENV ?= .venv
DEVICE ?= cpu
SERVE ?=

INSTALL = $(VENV)/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt
# In a folder of its own, which one test looks into: it loads itself wherever torch is imported.
TORCH_TPU = torch_tpu absl-py frozendict immutabledict portpicker
INPUTS = pyproject.toml constraints.txt plugins/sim/pyproject.toml
KERNELS = $(shell find platforms/cpu/kernels -type f -not -path "*/tests/*" -not -name "*.pyc")

.PHONY: help serve test clean

help:
	@echo 'make serve   install the engine into $(VENV) and serve its embedded model on the $(DEVICE)'
	@echo 'make test    install the engine with its test tools into $(VENV) and run every check'
	@echo 'make clean   remove $(VENV) and what tools have cached'

serve: $(VENV)/.installed
	$(VENV)/bin/engine serve --device $(DEVICE) $(SERVE)

test: $(VENV)/.installed-for-tests
	VENV=$(VENV) scripts/check

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@scripts/require-python $(PYTHON)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(INPUTS) $(KERNELS) | $(VENV)/bin/python
	$(INSTALL) --editable '.[cpu]'
	scripts/install-kernels $(VENV)
	touch $@

$(VENV)/.installed-for-tests: $(INPUTS) $(KERNELS) | $(VENV)/bin/python
	$(INSTALL) --editable '.[cpu,dev]'
	$(INSTALL) --no-deps --no-build-isolation --editable plugins/sim
	$(INSTALL) --no-deps --upgrade --target $(VENV)/torch_tpu $(TORCH_TPU)
	scripts/install-kernels $(VENV)
	touch $(VENV)/.installed $@
