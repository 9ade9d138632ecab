# `make demo` and `make test` do all their own set-up, the virtual environment in .venv included.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# For another build of torch, install it into .venv first, or set TORCH_INDEX to an index as PyTorch's install page names it.
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),)

.PHONY: demo test lint bench clean

demo: $(VENV)/.run-ready
	$(BIN)/unet demo unet-demo
	@echo "  next:    source $(BIN)/activate, then unet --help"

test: $(VENV)/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

lint: $(VENV)/.dev-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev-ready
	$(BIN)/python -m tests.benchmarks

$(VENV)/.run-ready: pyproject.toml constraints.txt
	@echo "installing into $(VENV), a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(INDEX) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev-ready: $(VENV)/.run-ready
	$(BIN)/python -m pip install --quiet $(INDEX) --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) unet-demo build *.egg-info
