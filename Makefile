# The commands of this repository. Each first makes the virtual environment it needs, from the lock,
# and installs again only when the lock or pyproject.toml changed.

PYTHON ?= python3
NEXT_PYTHON ?= python3.12
VENV = .venv
NEXT = .venv-next
BIN = $(VENV)/bin
PIP = -m pip install -qq --disable-pip-version-check

# Compiled programs are kept between runs.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.5

.PHONY: help demo demo-tokens demo-hierarchy demo-stems test test-parity test-gpu test-next lint format bench scaling clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.extras-demo  ## Prepare, train, generate: out/demo/*.wav and a table, within minutes
	$(BIN)/mgen demo --out=out/demo

demo-tokens: $(VENV)/.extras-demo  ## Train text-music embedding, semantic encoder, k-means: a table
	$(BIN)/mgen demo_tokens --out=out/chain

demo-hierarchy: $(VENV)/.extras-demo  ## And the MusicLM chain: text to audio in small, a table
	$(BIN)/mgen demo_hierarchy --out=out/chain

demo-stems: $(VENV)/.extras-demo  ## Diffusion over stems: make, fill in, separate: a table
	$(BIN)/mgen demo_stems --out=out/stems

test: $(VENV)/.extras-dev,scale,export,preflight  ## Run the tests that need no PyTorch
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not parity'

test-parity: $(VENV)/.extras-dev,parity  ## Compare with the released PyTorch implementations
	$(BIN)/python -m pytest -n 2 --dist loadfile -m parity

test-gpu: $(VENV)/.extras-dev,preflight-gpu  ## Compile for GPUs that are not here
	@# Where the compiler cannot be imported, pytest would skip.
	$(BIN)/python -c 'import jax_plugins.xla_cuda12'
	$(BIN)/python -m pytest -k h100 tests/sharding/test_preflight.py

test-next: $(NEXT)/.extras-dev  ## Run the tests that need no TensorFlow: Python 3.12, jax 0.11.2
	$(NEXT)/bin/python -m pytest -n 2 --dist loadfile -m 'not parity and not tf'

lint: $(VENV)/.extras-dev,scale,export,preflight  ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.extras-dev,scale,export,preflight  ## Format, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.extras-dev,parity  ## Time this code against its peers, side by side
	$(BIN)/mgen benchmark --suite=codec,lm_decode,lm_generate,inputs,encoders,kmeans,tokenize,stems

scaling: $(VENV)/.extras-dev,preflight  ## Weak scaling to 1024 TPUs from compiled programs
	$(BIN)/mgen scaling --out=out/scaling

clean:  ## Remove environments, caches and outputs
	rm -rf $(VENV) $(NEXT) .cache out build dist

$(VENV)/.extras-%: requirements.lock pyproject.toml setup.py
	@echo "installing mgen[$*] into $(VENV) from requirements.lock (minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) --constraint requirements.lock --editable '.[$*]'
	@# audio-diffusion-pytorch requires these old stubs, which hide numpy's own types from mypy.
	@$(BIN)/python -m pip uninstall -qq --yes data-science-types
	@touch '$@'

$(NEXT)/.extras-%: requirements-next.lock pyproject.toml setup.py
	@echo "installing mgen[$*] into $(NEXT) from requirements-next.lock (minutes the first time)"
	@test -x $(NEXT)/bin/python || $(NEXT_PYTHON) -m venv $(NEXT)
	@$(NEXT)/bin/python $(PIP) --constraint requirements-next.lock --editable '.[$*]'
	@touch '$@'
