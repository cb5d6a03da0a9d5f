# Every target sets up what it needs: a Python 3.11+ with venv is all that must be there.
#   make demo [IMAGE=picture.png]   dream a walk into a picture, write outputs/demo/
#   make test | make check | make bench
.PHONY: setup demo test check bench clean
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)

setup: $(READY)

# PyTorch comes first and without its dependencies, as the CPU build: PyPI's Linux build brings gigabytes of CUDA.
# Where the index of CPU builds cannot be reached, pip's own sources (PyPI, or a local folder of wheels) serve.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up .venv (once; a few minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "No venv module: apt-get install python3-venv" >&2; exit 1; }
	@$(PIP) --no-deps --index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 10 "$(TORCH)" 2>/dev/null \
		|| $(PIP) --no-deps "$(TORCH)"
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	@$(BIN)/python examples/00_demo.py $(if $(IMAGE),--image "$(IMAGE)")

# Two processes share the tests, file by file, with one thread each: threads that spin while they wait would take the cores
# from them. Alone on two cores spinning is right, an env step is a quarter quicker with it.
test: export OMP_WAIT_POLICY ?= PASSIVE
test: export OMP_NUM_THREADS ?= 1
test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

clean:
	rm -rf .venv outputs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
