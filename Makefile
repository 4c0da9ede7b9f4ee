# Each target does its own set-up in a fresh checkout: a virtual environment, then what the target needs, at the
# versions of constraints.txt. A stamp file remembers it, so the second run starts at once.
#
#   make demo | test | bench | docs | lint | wheels | clean      ARGS="..." is passed on; PYTHON=python3.12 chooses the interpreter
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
OP ?=
JOBS ?= 2

BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# Other releases of transformers, each in a folder of its own: tests/lean_modules/test_other_releases.py.
OTHER := $(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-compile --upgrade
# What the tests of trainers need beside transformers; why in a folder: tests/helpers/trl_runs.py.
TRAINERS := trl diffusers datasets pyarrow pandas python-dateutil six dill multiprocess xxhash \
	importlib_metadata zipp requests urllib3 idna certifi charset-normalizer
OLDEST := 'transformers==4.57.*' 'huggingface_hub<1' 'tokenizers<0.23' requests urllib3 idna certifi charset-normalizer
# What the compiled part and the installed metadata are made from.
SOURCES := sparse_ft/_version.py pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard csrc/*.cpp csrc/*.h csrc/*/*)

.PHONY: help demo test bench docs lint wheels clean
help:
	@echo 'make demo    fine-tune a real encoder on real reviews with several methods: accuracy, memory, time'
	@echo '             make demo ARGS="--model FOLDER --data FILE.csv --density 0.01 --structure columns --steps 50"'
	@echo '             make demo ARGS="--methods all" adds ours without lean modules and with as many entries as LoRA'
	@echo '             make demo ARGS=--help shows the rest'
	@echo 'make test    every test; make test ARGS="-k name" some of them'
	@echo 'make bench   every op against its competitors, in at most 15 minutes; make bench OP=masked_adamw one of them'
	@echo 'make bench OP=methods   27 recipes, LoRA, DoRA and full at one budget, in hours; ARGS="--seconds N", goes on where it was'
	@echo 'make docs    the site of docs/, to build/site, and whether every link leads somewhere'
	@echo 'make lint    ruff, rules and format, then types; make lint ARGS=--fix mends what it can'
	@echo 'make wheels  a CPU wheel for each Python from 3.10 to 3.13 that is here, each tried in a bare environment; into dist/'
	@echo 'make clean   remove what was built and written; the environment $(VENV) stays, its package is installed anew'

$(STAMPS):
	@command -v $(PYTHON) >/dev/null || { echo 'There is no $(PYTHON); name one: make PYTHON=/path/to/python3'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo '$(PYTHON) cannot make a virtual environment (on Debian: apt-get install python3-venv)'; exit 1; }
	@mkdir -p $@

$(STAMPS)/demo: $(SOURCES) | $(STAMPS)
	@echo 'installing sparse_ft and what the demo needs into $(VENV) (once, minutes)'
	$(PIP) -e '.[demo]'
	@touch $@

# The demo has tests of its own, hence its extra. Why torchvision lies in a folder of its own: tests/helpers/vision.py.
$(STAMPS)/test: $(SOURCES) | $(STAMPS)
	@echo 'installing sparse_ft and what the tests need into $(VENV) (once, minutes)'
	$(PIP) -e '.[test,demo]'
	$(PIP) --upgrade --no-deps --target $(VENV)/vision torchvision timm
	-$(OTHER) -c constraints.txt --target $(VENV)/trl $(TRAINERS)
	-$(OTHER) --target $(VENV)/transformers-oldest $(OLDEST)
	-$(OTHER) --target $(VENV)/transformers-newest transformers
	-$(BIN)/python tests/helpers/vllm_source.py $(VENV)/vllm
	@touch $@

$(STAMPS)/bench: $(SOURCES) | $(STAMPS)
	@echo 'installing sparse_ft and what the benchmarks need into $(VENV) (once, minutes)'
	$(PIP) -e '.[bench,test,demo]'
	@touch $@

# zensical asks for Python 3.11 or later.
$(STAMPS)/docs: $(SOURCES) | $(STAMPS)
	@echo 'installing sparse_ft and what the site needs into $(VENV) (once, minutes)'
	$(PIP) -e '.[docs]'
	@touch $@

$(STAMPS)/lint: constraints.txt | $(STAMPS)
	$(PIP) ruff mypy torch numpy
	@touch $@

demo: $(STAMPS)/demo
	@$(BIN)/python -m demo $(ARGS)

# Several workers share the cores: threads that spin while they wait would take them from one another.
test: $(STAMPS)/test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)

# Every benchmark runs the tests of its op first.
bench: $(STAMPS)/bench
	@$(BIN)/python -m bench $(if $(OP),--op $(OP)) $(ARGS)

# What is built needs no network; pages are opened from the disk.
docs: $(STAMPS)/docs
	@$(BIN)/python -m docs.make $(ARGS)

lint: $(STAMPS)/lint
	$(BIN)/ruff check $(ARGS) .
	$(BIN)/ruff format $(if $(filter --fix,$(ARGS)),,--check) .
	$(BIN)/mypy

wheels: | $(STAMPS)
	@$(BIN)/python tools/wheels.py $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache bench/out sparse_ft/*.so sparse_ft/_build_info.py
	rm -rf $(STAMPS)
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
