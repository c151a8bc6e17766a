# On a new machine, start with `make quickstart` or `make test`: each first installs what it needs.

PYTHON ?= python3
GPU_PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SOURCES := $(shell find csrc -type f 2>/dev/null) setup.py

# uv installs faster than pip and is used where it is installed; `make UV= install` uses pip. Both take an environment
# that the other one made.
UV     ?= $(shell command -v uv 2>/dev/null)
ifneq ($(UV),)
# uv chooses a Python itself, unless the caller names one: make PYTHON=python3.13
UV_PYTHON_CHOICE := $(if $(filter file,$(origin PYTHON)),,--python $(PYTHON))
MAKE_VENV = $(UV) venv --quiet --seed $(UV_PYTHON_CHOICE) $(VENV)
# uv reads none of pip's settings, so pip's index and its constraints are handed to it.
INSTALL   = setting() { $(BIN)/python -m pip config list 2>/dev/null | sed -n "s/^global\.$$1='\(.*\)'$$/\1/p"; }; \
  export UV_CONSTRAINT="$${UV_CONSTRAINT:-$${PIP_CONSTRAINT:-$$(setting constraint)}}"; \
  export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$(setting index-url)}}"; \
  $(UV) pip install --quiet --python $(BIN)/python
else
MAKE_VENV = $(PYTHON) -m venv $(VENV)
INSTALL   = $(BIN)/python -m pip install --quiet
endif

.PHONY: help install quickstart test test-slow golden headers sanitize emulate emulate-mutants fuzz-readers soak gpu-check lint typecheck docs wheel release-check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(VENV)/.installed $(VENV)/.built  ## create .venv, install, build the native libraries

# Installing and building are separate steps, so a change in csrc/ is built without installing again.
$(VENV)/.installed: pyproject.toml tools/check_machine.py
	@test -n "$(UV)" || $(PYTHON) tools/check_machine.py
	@test -x $(BIN)/python || $(MAKE_VENV)
	@test -z "$(UV)" || $(BIN)/python tools/check_machine.py --uv
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade >/dev/null
	@$(INSTALL) --upgrade pip "setuptools>=77" wheel ninja
	@$(INSTALL) "torch>=2.11" "torchvision>=0.26"
	@packages="$$($(BIN)/python tools/check_machine.py --compiler)"; test -z "$$packages" || \
	  { echo "there is a GPU but no CUDA compiler: installing $$packages"; $(INSTALL) "$$packages"; } || \
	  echo "warning: without a CUDA compiler the GPU will not be used; try again with make -B install" >&2
	@echo "installing the other packages and building the native libraries, which takes minutes"
	@$(INSTALL) --no-build-isolation --editable ".[dev]"
	@$(BIN)/python tools/check_machine.py --imports
	@touch $@ $(VENV)/.built

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

quickstart: install  ## generate data, train, evaluate, draw: five minutes, results in runs/quickstart
	$(BIN)/python tools/train.py --config configs/quickstart.yaml --output runs/quickstart --overwrite

test: install  ## run the tests that take less than five seconds each
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile -m "not slow"

test-slow: install  ## run the other tests: whole runs, killed and resumed ones, several processes
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile -m slow

golden: install  ## compare the first losses with the stored ones; GOLDEN="--renew quickstart" stores them again
	$(BIN)/python -m tests.golden $(GOLDEN)

headers: install  ## compile csrc/ against the headers of the oldest and the newest torch, CUDA included
	$(BIN)/python tools/check_headers.py

sanitize: install  ## run the operators' tests under AddressSanitizer and UBSan, in a separate build
	sh tests/ops/run_sanitized.sh $(BIN)/python

emulate: install  ## make random calls of the CUDA kernels on the CPU; SANITIZE=thread or address, SECONDS=120
	sh tests/emulator/run.sh $(BIN)/python "$(SANITIZE)" --seconds $(or $(SECONDS),120)

emulate-mutants: install  ## break the CUDA kernels on purpose and check that `make emulate` notices
	$(BIN)/python -m tests.emulator.mutants

fuzz-readers: install  ## read 10,000 randomly changed files of every kind; only clear errors are allowed
	$(BIN)/python -m tests.fuzz_readers --cases 10000 --seed 0

# Twenty minutes on two cores. SOAK has other options: SOAK="--kills 50 --processes 2"
soak: install  ## kill runs 800 times at random moments, resume them, and compare them with whole runs
	@test -n "$(OUT)" || rm -rf build/soak
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --out "$(or $(OUT),build/soak)" $(or $(SOAK),--kills 800)

# Works offline and installs nothing. GPU_CHECK has further options for the program.
gpu-check:  ## check and time everything that needs a GPU, in 7 minutes, offline: make gpu-check OUT=dir
	PYTHONPATH="$(CURDIR):$$PYTHONPATH" $(GPU_PYTHON) -m benchmarks.gpu_check --out "$(OUT)" $(GPU_CHECK)

lint: install  ## check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: install  ## check the types
	$(BIN)/mypy

docs: install  ## build the documentation as a web site, in build/site
	$(BIN)/python -m mkdocs build --strict --site-dir build/site

# TORCH_CUDA_ARCH_LIST and DETECTOR_CUDA choose what a wheel contains; setup.py describes them.
wheel: install  ## build a wheel and a source distribution in dist/, and check the wheel
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python tools/check_wheel.py dist/*.whl

release-check:  ## check that version, CHANGELOG and tag agree; TAG=v0.2.0 names the tag
	$(PYTHON) tools/check_release.py $(if $(TAG),--tag $(TAG))

clean:  ## remove builds and caches, but not data, runs and .venv
	rm -rf build dist *.egg-info detector/*.so .pytest_cache .mypy_cache .ruff_cache $(VENV)/.built
