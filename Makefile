# `make demo` and `make test` work in a fresh clone; everything they install goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint docs reference inspect clean

# glibc puts the step's large buffers on huge pages: far fewer page faults, a faster step.
demo: .venv/run
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/mcr demo --workdir=runs/demo

# Most tests, in minutes.
test: .venv/dev lint
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow"

# All of them, as in CI: whole runs, several processes, kills, notebooks, the docs' commands.
test-all: .venv/dev lint docs
	$(BIN)/python -m pytest -n 2 --dist loadfile

docs: .venv/dev
	$(BIN)/mkdocs build -q

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "Python 3.11 to 3.13 is needed; name one with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python setup.py pyproject.toml constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/dev: .venv/run
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# torch and transformers, apart from everything else: with them `make test` compares live.
reference: .venv-reference/done

.venv-reference/done:
	$(PYTHON) -m venv .venv-reference
	.venv-reference/bin/pip install -q --disable-pip-version-check torch==2.13.0
	.venv-reference/bin/pip install -q --disable-pip-version-check transformers==5.23.0 peft==0.21.2 gguf==0.19.0 fastapi==0.165.0 uvicorn==0.54.0 openai==3.57.0
	@touch $@

# inspect_ai and verifiers, apart from everything else: with them `make test` tests the adapters.
inspect: .venv-inspect/done

.venv-inspect/done: pyproject.toml
	$(PYTHON) -m venv .venv-inspect
	.venv-inspect/bin/pip install -q --disable-pip-version-check -e '.[inspect,verifiers]' inspect_ai==0.3.285 verifiers==0.3.1
	@touch $@

clean:
	rm -rf .venv .venv-reference .venv-inspect .pytest_cache build site *.egg-info
