# make demo    set everything up, patch real models, run them on a photograph: same outputs, how much faster
# make test    set everything up, build every wall, run the test-suite
# make bench   microbenchmarks and whole models      make gpu    everything, on a machine with a GPU (offline)
# make fuzz    random arguments, for a minute        make mutate does the suite notice broken CUDA kernels?
# make lint    ruff, clang-format                    make docs   the site      make wheel   a wheel in dist/

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN = $(BIN)/python
JOBS ?= $(shell nproc)
export MAX_JOBS ?= $(JOBS)
BOOST = build/boost
SOURCES = $(shell find csrc -type f) setup.py pyproject.toml

.PHONY: demo test bench gpu fuzz mutate lint format docs wheel clean build

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "setuptools>=77" wheel ninja
	$(BIN)/pip install --quiet "torch>=2.10" torchvision
	touch $@

$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

$(VENV)/.bench: $(VENV)/.built
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[bench]"
	touch $@
