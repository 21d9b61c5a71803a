# make setup | quickstart | test | check | precisions | bench | drills | clean. Each needs nothing but Python 3.11 or later and a C++ compiler.
# Outside make, `. .venv/bin/activate` first.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
EXTRAS := dev,hf,parquet,zstd
TRITON := 3.6.0  # where torch brings none: its CPU build. The kernels then run in Triton's interpreter, for the tests
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup quickstart clean-quickstart test check precisions kernels bench drills clean

help:
	@echo "make setup       the environment .venv, with pinned versions and DeepSpeed's operators built"
	@echo "make quickstart  the whole job on the corpus that ships: runs/quickstart/report.html"
	@echo "make test        the test suite"
	@echo "make check       ruff, mypy and the order of imports"
	@echo "make precisions  the core of the tests, with \`auto\` precision forced to bf16 and to fp32"
	@echo "make kernels     compile the Triton kernels for GPUs that are not there, and print what they take"
	@echo "make bench       the benchmarks"
	@echo "make drills      harm files, disks and runs, and kill things: a table of what was tried and survived"
	@echo "make clean       remove caches and build products; clean-quickstart removes runs/quickstart"

# --- setup: once; again when the requirements change -------------------------------------------------------------------

READY := .venv/.ready
setup: $(READY)

$(READY): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed, $(PYTHON) is " \
	    + sys.version.split()[0] + "; name another: make setup PYTHON=python3.12")'
	test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	python -m pip install torch numpy -c constraints.txt
	python -c 'import triton' 2>/dev/null || python -m pip install triton==$(TRITON)
	python -m pip install -e '.[$(EXTRAS)]' -c constraints.txt
	python -m fast_electra.hosts.operators || test $$? = 3  # 3: a GPU that cannot compile trains with torch's Adam
	@touch $@

# --- quickstart: what is finished is kept; what was interrupted goes on -------------------------------------------------

QUICK := runs/quickstart
FREE_PORT := import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])
RANKS := import torch; print(min(2, torch.cuda.device_count()) or 2)

# One training run. Usage: $(call train,NAME OF THE RUN,CONFIG)
define train
@if grep -qs '"completed"' $(QUICK)/$(1)/status.json; then \
    echo "$(QUICK)/$(1) is complete, kept (make clean-quickstart starts over)"; \
else \
    port=$$(python -c '$(FREE_PORT)'); ranks=$$(python -c '$(RANKS)'); export OMP_NUM_THREADS=1; set -x; \
    deepspeed --num_gpus $$ranks --master_port $$port launch/pretrain.py --deepspeed_config $(2); \
fi
endef

quickstart: $(QUICK)/shards/manifest.json
	$(call train,auxiliary,ds_configs/tiny_auxiliary.json)
	$(call train,discriminator,ds_configs/tiny.json)
	fast-electra report $(QUICK)/auxiliary $(QUICK)/discriminator --output $(QUICK)/report.html
	@python .ci/quickstart_figures.py $(QUICK)

$(QUICK)/tokenizer/tokenizer.json: | setup
	fast-electra tokenizer --input sample --output $(QUICK)/tokenizer --vocabulary 2048

$(QUICK)/shards/manifest.json: $(QUICK)/tokenizer/tokenizer.json
	fast-electra corpus --input sample --tokenizer $(QUICK)/tokenizer --output $(QUICK)/shards --heldout 0.05

clean-quickstart:
	rm -rf $(QUICK)

# --- development --------------------------------------------------------------------------------------------------------

test: setup
	OMP_NUM_THREADS=1 python -m pytest -m "not slow"

CORE_TESTS := tests/training/test_runs.py tests/training/test_methods.py tests/jobs tests/test_golden.py
precisions: setup
	for dtype in bf16 fp32; do FAST_ELECTRA_DTYPE=$$dtype OMP_NUM_THREADS=1 python -m pytest -m "not slow" $(CORE_TESTS); done

drills: setup
	OMP_NUM_THREADS=1 python -m pytest -m "slow or drill" --timeout 900

check: setup
	ruff check .
	ruff format --check .
	mypy
	lint-imports

kernels: setup
	python benchmarks/compile_kernels.py

bench: setup
	@for script in benchmarks/sampler.py benchmarks/cross_entropy.py benchmarks/step_vs_huggingface.py benchmarks/existing_models.py benchmarks/engine.py; do echo "+ python $$script"; python $$script; done

clean:
	rm -rf build dist *.egg-info .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
