# SPDX-License-Identifier: Apache-2.0
# `make` lists the targets. Each does the set-up it needs; what is done already is not done again.

SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup native plugins jetpack6 demo test check processors verify clean FORCE

# The Python that makes the environment, and arguments for pip, for example the index of PyTorch's CPU builds.
PYTHON ?= python3
PIP_ARGS ?=
# Compute capabilities of the CUDA libraries, 80,87 for example; scripts/build_plugins.sh alone builds for all.
CUDA_ARCHS ?= 87

BUILD := .build
VENV := .venv
PY := $(VENV)/bin/python
LIBRARY := plugins/lib/libfastmmoe_ort.so
CXX_SOURCES := $(sort $(shell find plugins tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh'))
BUILD_INPUTS := fastmmoe/__init__.py $(wildcard plugins/CMakeLists.txt plugins/cmake/* scripts/fetch_*.sh)
PLUGIN_SOURCES := $(filter-out plugins/testing/% tests/%,$(CXX_SOURCES))
PLUGIN_INPUTS := $(PLUGIN_SOURCES) $(BUILD_INPUTS) scripts/build_plugins.sh
CPU_SOURCES := $(filter-out plugins/tensorrt/% $(addsuffix /%,$(wildcard plugins/*/cuda)),$(PLUGIN_SOURCES))
NATIVE_INPUTS := $(CPU_SOURCES) $(BUILD_INPUTS) scripts/build_native.sh
JETSON_PLUGIN := plugins/lib/aarch64/libfastmmoe_trt.so
JETPACK6_PLUGIN := plugins/lib/jetpack6/libfastmmoe_trt.so
ifeq ($(shell uname -m),aarch64)
PLUGINS := $(JETSON_PLUGIN)
else
CROSS := $(if $(shell command -v aarch64-linux-gnu-g++-12),yes)
PLUGINS := plugins/lib/libfastmmoe_trt.so plugins/lib/libfastmmoe_ort_cuda.so $(if $(CROSS),$(JETSON_PLUGIN))
endif

# $(call step,what is done,command,name of its log): one line with the seconds; the log only where the command fails.
define step
@mkdir -p $(BUILD); printf '%s ... ' '$(1)'; start=$$SECONDS; \
if { $(2); } >$(BUILD)/$(3).log 2>&1; then echo "$$((SECONDS - start)) s"; \
else echo "failed ($(BUILD)/$(3).log)"; tail -n 40 $(BUILD)/$(3).log; exit 1; fi
endef

help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## /{ printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'Variables: PYTHON=python3 (3.10 or later), PIP_ARGS="arguments for pip install", CUDA_ARCHS=80,87'

setup: $(BUILD)/setup ## Python environment with the exporter and the tools, in .venv
	@:

native: $(BUILD)/native.done ## native operators for ONNX Runtime, in plugins/lib
	@:

plugins: $(BUILD)/plugins-$(CUDA_ARCHS).done ## TensorRT plugin and CUDA operators, in plugins/lib
	@$(if $(filter $(JETSON_PLUGIN),$(PLUGINS)),:,echo 'skipped $(JETSON_PLUGIN): install g++-12-aarch64-linux-gnu')

jetpack6: $(if $(CROSS),$(BUILD)/jetpack6.done) ## TensorRT plugin for Jetson with JetPack 6, in plugins/lib
	@$(if $(CROSS),:,echo 'skipped $(JETPACK6_PLUGIN): needs x86-64 and g++-12-aarch64-linux-gnu')

demo: setup native ## export and run the built-in model
	@$(PY) scripts/demo.py

# Each worker has a core; threads of torch that wait would spin, in the way of the other.
test: setup native plugins ## tests, without the slow ones
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(PY) -m pytest tests -rs -n 2 --dist loadgroup

check: setup ## lint, format, types and C++ format
	$(call step,ruff check,$(PY) -m ruff check .,ruff)
	$(call step,ruff format,$(PY) -m ruff format --check .,format)
	$(call step,mypy,$(PY) -m mypy --cache-dir $(BUILD)/mypy -p fastmmoe,mypy)
	$(call step,mypy on scripts and tests,$(PY) -m mypy --cache-dir $(BUILD)/mypy-tests \
	    --explicit-package-bases --follow-imports=silent scripts tests,mypy-tests)
	$(call step,clang-format,printf '%s\n' $(CXX_SOURCES) | xargs -r $(VENV)/bin/clang-format --dry-run -Werror,clang)

processors: setup native ## the parity tests with the kernels of another processor
	@$(PY) scripts/check_processors.py --other --threads 2

verify: setup native plugins ## the slow tests, which install packages; the tests as other processors round
	@$(MAKE) --no-print-directory jetpack6 || echo 'without it tests are skipped'
	@$(PY) scripts/check_processors.py
	@$(PY) -m pytest tests -rs -m slow

clean: ## remove what make made
	@rm -rf $(BUILD) $(VENV) build plugins/lib .pytest_cache .mypy_cache .ruff_cache

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo '$(PYTHON) is missing or older than 3.10: set PYTHON, for example make PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo '$(PYTHON) cannot make environments: install python3-venv' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(BUILD)/setup: pyproject.toml $(VENV)/pyvenv.cfg
	$(call step,Python packages (minutes the first time),$(PY) -m pip install --disable-pip-version-check \
	    -e '.[dev]' $(PIP_ARGS),setup)
	@touch $@

$(BUILD)/native.done: $(NATIVE_INPUTS) $(if $(wildcard $(LIBRARY)),,FORCE)
	$(call step,native operators,bash scripts/build_native.sh,native)
	@touch $@

# The libraries are those of the architectures that were asked for last.
$(BUILD)/plugins-$(CUDA_ARCHS).done: $(PLUGIN_INPUTS) $(if $(filter-out $(wildcard $(PLUGINS)),$(PLUGINS)),FORCE) \
    | $(VENV)/pyvenv.cfg
	$(call step,CUDA libraries for $(CUDA_ARCHS),bash scripts/build_plugins.sh --archs $(CUDA_ARCHS),plugins)
	$(if $(CROSS),$(call step,TensorRT plugin for Jetson,bash scripts/build_plugins.sh --aarch64,plugins-aarch64))
	@rm -f $(BUILD)/plugins-*.done; touch $@

$(BUILD)/jetpack6.done: $(PLUGIN_INPUTS) $(if $(wildcard $(JETPACK6_PLUGIN)),,FORCE) | $(VENV)/pyvenv.cfg
	$(call step,TensorRT plugin for JetPack 6,bash scripts/build_plugins.sh --jetpack6,plugins-jetpack6)
	@touch $@

FORCE:
