# demo           install, then watch a base model learn to reason
# test           install with the tools of development, then run every test
# check          format, lint and types
# bench          time the parts that matter: every bench/bench_*.py
# results-check  every figure quoted in README and docs equals the stored one
#
# Needs Python 3.11 or newer: make demo PYTHON=python3.12 chooses one. Everything goes into .venv.

PYTHON ?= python3
VENV ?= .venv
# Where a CPU-only torch comes from on Linux without an NVIDIA driver; the default build brings
# gigabytes of CUDA. Where this address cannot be reached, the default index is used.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
SOURCES := pyproject.toml constraints.txt src/forethought/__init__.py

.PHONY: demo test check format bench results-check clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	$(BIN)/forethought quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev
	@set -e; for file in bench/bench_*.py; do \
		[ -e "$$file" ] || continue; echo "$$file"; $(BIN)/python "$$file"; \
	done

results-check: $(VENV)/.installed
	$(BIN)/python bench/check_results.py

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is not Python 3.11 or newer: choose one with PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "error: no virtual environment: install your system's python3-venv"; exit 1; }
	@touch $@

# Alone and first, so that the CPU build is there when the package asks for torch.
$(VENV)/.torch: constraints.txt | $(VENV)/.created
	@echo "Installing into $(VENV): 300 MB, some minutes the first time ..."
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
		$(PIP) -qqq install --retries 0 --timeout 30 --no-deps --index-url $(TORCH_INDEX) \
			"$$(grep '^torch==' constraints.txt)" >/dev/null 2>&1 || true; \
	fi
	@touch $@

$(VENV)/.installed: $(SOURCES) | $(VENV)/.torch
	@$(PIP) -qq install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(SOURCES) | $(VENV)/.torch
	@$(PIP) -qq install -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
