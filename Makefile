# Each target sets up what it needs in its own virtual environment: `make bench`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc -type f)
NATIVE := $(shell find csrc examples tests/cuda_emulation -name '*.h' -o -name '*.cpp' -o -name '*.cu')
# Arguments for `make peers`, e.g. make peers PEERS="--data DATA_SET --frames FOLDER --resume"
PEERS ?=
# Arguments for `make gpu`, e.g. make gpu GPU="--quick"
GPU ?=
# Arguments for `make bench`, e.g. make bench ARGS="--method cfm --data mvtec3d"
ARGS ?= --method cfm-s
# Of `make fuzz`: share of the full counts, and which attacks, e.g. make fuzz SCALE=0.01 ATTACKS=hostile_scans
SCALE ?= 1
ATTACKS ?=
# Of `make soak`.
MINUTES ?= 15

.PHONY: bench gpu peers test fuzz soak lint typecheck format generate sanitize other-processors clean

bench: $(VENV)/.installed-fit
	$(BIN)/mmad-fast bench $(ARGS)

# Exit code 2 without a GPU. ONNX Runtime for CUDA has the files of the one for CPUs, and replaces it.
gpu:
	@command -v nvidia-smi >/dev/null || { echo "make gpu needs an NVIDIA driver: no nvidia-smi here"; exit 2; }
	MMAD_FAST_CUDA=OFF $(MAKE) $(VENV)/.onnxruntime-gpu
	$(BIN)/python bench/on_gpu.py $(GPU)

peers: $(VENV)/.installed-bench
	$(BIN)/python bench/run_ops.py $(PEERS)
	$(BIN)/python bench/pages.py cpu

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

# Exit code 1 with a fault. The rows of a full run are the page docs/benchmarks/robustness.md.
fuzz: $(VENV)/.installed-dev
	$(BIN)/python bench/fuzz.py $(ATTACKS) --scale $(SCALE); code=$$?; \
	  $(BIN)/python bench/pages.py robustness && exit $$code

soak: $(VENV)/.installed-dev
	$(BIN)/python bench/fuzz.py soak --count $$((60 * $(MINUTES))); code=$$?; \
	  $(BIN)/python bench/pages.py robustness && exit $$code

# hadolint has wheels for x86-64 Linux only.
lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)
	test ! -x $(BIN)/hadolint || $(BIN)/hadolint docker/*.Dockerfile
	$(BIN)/python tools/kernel_stubs.py --check
	$(BIN)/python tools/api_page.py --check
	$(BIN)/python bench/pages.py --check

typecheck: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

# What is generated from the sources: the kernels' types and the page of public names.
generate: $(VENV)/.installed-dev
	$(BIN)/python tools/kernel_stubs.py
	$(BIN)/python tools/api_page.py

# Optional jobs: see CONTRIBUTING.md.
sanitize: $(VENV)/.installed-dev
	VENV=$(VENV) .ci/sanitizers

other-processors: $(VENV)/.installed-dev
	VENV=$(VENV) .ci/other_processors

clean:
	rm -rf build dist $(VENV)

$(VENV)/.onnxruntime-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pip uninstall --quiet --yes onnxruntime
	$(BIN)/python -m pip install --quiet onnxruntime-gpu
	touch $@

# One stamp per extra; installed again when the kernels or the requirements change.
$(VENV)/.installed-%: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	touch $@
