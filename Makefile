# `make demo` and `make test` do all their own set-up, the virtual environment in .venv included.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
# For another build of torch, install it into .venv first, or set TORCH_INDEX to an index as PyTorch's install page names it.
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),)

.PHONY: demo test lint bench bench-full clean

demo: $(VENV)/.run-ready
	$(BIN)/unet demo unet-demo
	@echo "  next:    source $(BIN)/activate, then unet --help"

# Files of tests side by side, as many as there are cores: each then computes on one.
test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not alone" --numprocesses logical --maxprocesses 8 --dist loadfile
	$(BIN)/python -m pytest -m alone

lint: $(VENV)/.dev-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Against other tools, which have an environment of their own; what cannot be installed is listed as not measured. Then training.
bench: $(VENV)/.dev-ready
	-$(MAKE) $(PEERS)/.ready
	$(BIN)/python -m tests.benchmarks --fresh --peers $(PEERS)/bin/python
	$(BIN)/python -m tests.benchmarks.training

# Hours; started again it goes on where it was (FRESH=--fresh forgets what is measured).
bench-full: $(VENV)/.dev-ready
	-$(MAKE) $(PEERS)/.ready
	$(BIN)/python -m tests.benchmarks --full $(FRESH) --peers $(PEERS)/bin/python

$(VENV)/.run-ready: pyproject.toml constraints.txt
	@echo "installing into $(VENV), a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(INDEX) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev-ready: $(VENV)/.run-ready
	$(BIN)/python -m pip install --quiet $(INDEX) --constraint constraints.txt --editable ".[dev]"
	touch $@

# torch first and by itself, so that the build of $(INDEX) is kept by what the others ask for.
$(PEERS)/.ready: pyproject.toml constraints.txt
	@echo "installing into $(PEERS), some minutes"
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade pip
	$(PEERS)/bin/python -m pip install --quiet $(INDEX) --constraint constraints.txt torch
	$(PEERS)/bin/python -m pip install --quiet $(INDEX) --constraint constraints.txt --editable ".[peers]"
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) unet-demo build *.egg-info
