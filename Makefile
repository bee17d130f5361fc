PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-out
# Whole files of tests to each core: fixtures of a file are made once. No more: some tests read sensors in time.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile
# NVIDIA's parser and compiler without a GPU; there are wheels for x86 alone.
ifeq ($(shell uname -m),x86_64)
CHECK := ,trt-check
endif

# To compile and interpret GPU kernels without a GPU; a CUDA build of torch has brought its own.
TRITON := triton==3.6.0; sys_platform == "linux" and platform_machine == "x86_64"

.PHONY: help setup demo test check test-slow test-runtimes bench quality bench-quantize bench-peers bench-sizes test-nvidia test-py38 test-arm64 test-browser test-ray test-triton

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready ## make .venv with everything that quantizing, exporting and testing need

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "slmq-edge needs Python 3.11 to 3.13, %s is %d.%d: make setup PYTHON=python3.12" % (sys.executable, *sys.version_info[:2]))'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "this Python has no venv: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check '$(TRITON)'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,quantize,onnx,eval,dev$(CHECK)]'
	@touch $@

demo: setup ## quantize the built-in model, export, profile it and its baseline, compare
	@rm -rf $(DEMO) && mkdir $(DEMO)
	$(BIN)/slmq-edge export demo-llama --method spinquant --scheme w8a8 --preset fast --activations symmetric --no-online -o $(DEMO)/bundle
	$(BIN)/slmq-edge export demo-llama --method none --scheme fp32 -o $(DEMO)/baseline
	$(BIN)/slmq-edge profile $(DEMO)/bundle -p 128 -n 64 -r 10 -o $(DEMO)/bundle-run.json
	$(BIN)/slmq-edge profile $(DEMO)/baseline -p 128 -n 64 -r 10 -o $(DEMO)/baseline-run.json
	$(BIN)/slmq-edge compare -b $(DEMO)/baseline-run.json -c $(DEMO)/bundle-run.json

test: setup ## run the tests, on up to four cores
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

check: setup ## what CI runs: linters, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --hypothesis-profile brief

test-slow: setup ## tests that take minutes
	$(BIN)/python -m pytest -m slow

test-runtimes: setup ## golden prompts under the oldest, the locked and the newest onnxruntime, which pip fetches
	$(BIN)/python -m pytest -m runtimes -rA

test-nvidia: setup ## whole models through NVIDIA's own compiler (TensorRT-RTX, no GPU): minutes, 5 GB
	$(BIN)/python -m pytest -m nvidia -rA

test-py38: setup ## what runs on a device, by a real Python 3.8: SLMQ_EDGE_PYTHON38, or one on PATH or of pyenv
	$(BIN)/python -m pytest -m py38 -rA

test-arm64: setup ## what runs on a device, on emulated Arm cores: 300 MB, which apt-get and pip fetch
	$(BIN)/python -m pytest -m arm64 -rA

test-browser: setup ## reports as a headless Chromium lays them out, on a phone and a desk, light and dark
	$(BIN)/python -m pytest -m browser -rA

test-ray: setup ## a bench on a cluster of Ray's, on this machine; pip fetches 75 MB
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -m ray -rA

test-triton: setup ## every GPU kernel compiled for sm_80 and sm_90, and interpreted on many shapes: minutes
	$(BIN)/python -m pytest -m triton -rA

bench: setup ## W8A8 against fp32 at SmolLM-135M's shape, on this CPU
	$(BIN)/python benchmarks/cpu_w8a8.py

quality: setup ## what each method keeps of three models, three seeds: more than an hour
	$(BIN)/python benchmarks/quality.py benchmarks/results/quality.json

bench-quantize: setup ## what quantizing costs at SmolLM-135M's and Qwen2.5-0.5B's shapes: hours on a CPU
	$(BIN)/python -m benchmarks.quantize

bench-sizes: setup ## real models' sizes exported and run: memory, seconds
	$(BIN)/python -m benchmarks.sizes

bench-peers: setup .venv-peers/.ready ## ours against llama.cpp, onnxruntime-genai and optimum: hours on a CPU
	@mkdir -p peers-out
	$(BIN)/python -m benchmarks.peers --ours-python $(BIN)/python --ours-python .venv-peers/bin/python --work peers-out -o peers-out/peers.json --markdown peers-out/peers.md

# llama.cpp is compiled here, for this CPU: that needs a C++ compiler, and takes ten minutes.
.venv-peers/.ready: benchmarks/peers-requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-peers/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@
