# `make demo` and `make test` are all a newcomer needs; each installs what it uses into .venv first. `make study-small`
# carries out the dose x overlap x gridsize study in small under build/study-small and goes on where it was stopped.
# TORCH_INDEX=URL takes torch from another package index (PyTorch's CPU builds); unset, the default index is used.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH_OPTION := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo study-small test test-all test-newest check install pictures clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py $(if $(NPZ),--npz "$(NPZ)") $(if $(OPTIONS),-- $(OPTIONS))

STUDY := $(BIN)/python -m pipeline.study
SMALL := build/study-small

study-small: $(STAMP)
	$(STUDY) generate --output-root $(SMALL)/phase_c --design examples/study-small.toml --workers 2
	$(STUDY) overlap --phase-c-root $(SMALL)/phase_c --output-root $(SMALL)/phase_d --workers 2
	$(STUDY) train --phase-c-root $(SMALL)/phase_c --phase-d-root $(SMALL)/phase_d --artifact-root $(SMALL)/training --workers 2
	$(STUDY) status $(SMALL)
	$(STUDY) verify $(SMALL)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 -q -m "not long"

test-all: $(STAMP)
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -n 2 -q

test-newest:
	@sh tests/newest.sh

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell pipeline converters catalogs tests docs benchmarks examples README.md CHANGELOG.md CONTRIBUTING.md
	$(BIN)/python -m pytest -q -n 0 tests/test_docs.py -k "not demo and not snippets"

pictures: $(STAMP)
	$(BIN)/python examples/pictures.py

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV): 1.6 GB with PyTorch, a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH_OPTION) --editable ".[test,train,fast,distributed]"
	@touch $@

clean:
	rm -rf $(VENV) .venv-newest demo-out build
