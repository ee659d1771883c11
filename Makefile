# `make test` and `make bench` set themselves up: they look at the machine, install into .venv what
# is missing, pinned by constraints/, and run. Nothing is installed twice.
#
#   PYTHON=python3.12    the Python (3.11 or later) that .venv is made of
#   SET=cpu              cpu, cuda12 or cuda13 instead of what the NVIDIA driver asks for; or oldest,
#                        the lower bounds of pyproject.toml, or newest, for tests without a GPU
#   TORCH_INDEX=URL      where torch's wheels come from, to pick its CPU build
#   WHEELS=FOLDER        of wheels, for pip to look in, too
#   ARGS="-k softmax"    handed on to pytest or to the benchmark

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
AUDIT := $(VENV)/audit

DRIVER := $(shell nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null \
	| sed -n '1s/^\([0-9][0-9]*\)\..*/\1/p')
WHY := $(if $(SET),SET=$(SET) was given,found $(if $(DRIVER),NVIDIA driver $(DRIVER),no NVIDIA driver))
ifndef SET
SET := $(if $(DRIVER),$(if $(shell test $(DRIVER) -ge 580 && echo new),cuda13,cuda12),cpu)
endif

# What each command needs: extras and dependency groups of pyproject.toml.
ACCELERATED_cpu := torch compilers
ACCELERATED_cuda12 := torch cuda12
ACCELERATED_cuda13 := torch cuda13
ACCELERATED_oldest := $(ACCELERATED_cpu)
ACCELERATED_newest := $(ACCELERATED_cpu)
PINNED := cpu cuda12 cuda13  # whose ruff and mypy the sources satisfy: those of others find more
NEEDS_test := test bench $(ACCELERATED_$(SET))
NEEDS_docker := docker
NEEDS_bench := bench $(if $(filter cpu,$(SET)),,$(ACCELERATED_$(SET)))

# A stamp stands for an installed set; its name changes with the versions that it stands for.
CONSTRAINTS := constraints/$(SET).txt
KEY := $(shell cat pyproject.toml $(CONSTRAINTS) | cksum | cut -d' ' -f1)
TEST := $(VENV)/.$(SET)-test-$(KEY)
BENCH := $(VENV)/.$(SET)-bench-$(KEY)
DOCKER := $(VENV)/.$(SET)-docker-$(KEY)

PIP := $(PY) -m pip --quiet --disable-pip-version-check install --constraint $(CONSTRAINTS) \
	$(if $(WHEELS),--find-links $(WHEELS))
PYTEST := $(PY) -m pytest --numprocesses auto --maxprocesses 8
INTERPRET := TRITON_INTERPRET=1 $(PYTEST)
TIMED := TRITON_INTERPRET=1 $(PY) -m pytest -m timed  # one process, and no other beside it
MAYBE_NONE := || test $$? -eq 5  # pytest's word for "no test selected"

define LINT
$(PY) -m ruff check --output-format concise
$(PY) -m ruff format --check
$(PY) -m mypy --strict gpuact
endef

.PHONY: help test test-slow test-deep test-gpu hardware lint accuracy exhaustive audit bench install clean \
	docker-test docker-test-gpu docker-bench lint-docker
.DELETE_ON_ERROR:

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/make \1\t\2/p' Makefile | expand -t 24

test: say-test $(TEST)  ## the tests (all but the slow ones), Triton's interpreter, then lint
	$(PYTEST) $(ARGS)
	$(INTERPRET) -m "interpreter and not (slow or deep or timed)" $(ARGS) $(if $(ARGS),$(MAYBE_NONE))
	$(TIMED) $(ARGS) $(if $(ARGS),$(MAYBE_NONE))
	$(if $(filter $(PINNED),$(SET)),$(LINT))

test-slow: say-test $(TEST)  ## the tests that are too slow for make test
	$(INTERPRET) -m "interpreter and slow" $(ARGS) $(MAYBE_NONE)
	$(PYTEST) -m "slow and not interpreter" $(ARGS) $(MAYBE_NONE)

test-deep: say-test $(TEST)  ## the whole products of cases and dtypes, of which those run a part
	$(INTERPRET) -m "interpreter and deep" $(ARGS) $(MAYBE_NONE)
	$(PYTEST) -m "deep and not interpreter" $(ARGS) $(MAYBE_NONE)

test-gpu: say-test $(TEST)  ## the tests that need a GPU; without one they fail
	GPUACT_REQUIRE_GPU=1 $(PYTEST) -m gpu $(ARGS)

hardware: say-test $(TEST) $(BENCH)  ## all that only a GPU can prove, and a record of it
	$(PY) -m tests.hardware --record tests/records/hardware.json $(ARGS)

lint: say-test $(TEST)  ## ruff and mypy
	$(LINT)

accuracy: say-test $(TEST)  ## the table of bounds, and the largest error of every function
	$(PY) -m tests.accuracy $(ARGS)

exhaustive: say-test $(TEST)  ## all 2^32 float32 through every formula; goes on where it stopped
	$(PY) -m tests.exhaustive run numpy host $(ARGS)
	$(PY) -m tests.exhaustive record

audit:  ## what is known against the pinned versions, by pip-audit, which asks PyPI
	$(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/python -m pip install --quiet pip-audit
	$(AUDIT)/bin/python -m pip_audit --strict --disable-pip --no-deps \
		$(patsubst %,--requirement constraints/%.txt,$(PINNED))

bench: say-bench $(BENCH)  ## the benchmark, for what this machine has
	$(PY) -m bench $(ARGS)

install: say-test $(TEST) $(BENCH)  ## what test and bench need, and nothing more

# In containers, run as whoever runs make, so that results are his; on the CUDA of the host's driver.
COMPOSE := docker compose --file docker/compose.yaml
docker-%: export GPUACT_UID ?= $(shell id -u)
docker-%: export GPUACT_GID ?= $(shell id -g)
docker-%: export GPUACT_CUDA ?= $(if $(filter cuda12,$(SET)),12,13)
docker-%: export GPUACT_REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)$(if $(shell \
	git status --porcelain -- . ':!bench/results' 2>/dev/null),-dirty)

# That an image works at all, and that what it writes through a mount is the user's. The folder is
# one of the checkout's: not every Docker sees the host's /tmp.
MOUNTED := $(CURDIR)/build
define SMOKE
$(COMPOSE) build $(1)
mkdir -p "$(MOUNTED)" && results=$$(mktemp -d "$(MOUNTED)/XXXXXX") && trap 'rm -rf "$$results"' EXIT && \
	$(COMPOSE) run --rm --volume "$$results:/gpuact/bench/results:z" $(1) python docker/smoke.py && \
	test -O "$$results"/*.json
endef

docker-test:  ## the tests, in a container without a GPU
	$(call SMOKE,test)
	$(COMPOSE) run --rm --env ARGS test

docker-test-gpu:  ## the tests that need a GPU, in a container that is given all of them
	$(call SMOKE,test-gpu)
	$(COMPOSE) run --rm --env ARGS test-gpu

docker-bench:  ## the benchmark, in such a container; results go to bench/results
	$(COMPOSE) run --build --rm bench $(ARGS)

lint-docker: $(DOCKER)  ## hadolint, and what Compose makes of compose.yaml
	$(VENV)/bin/hadolint docker/Dockerfile
	$(VENV)/lib/python3*/site-packages/compose/docker-compose --file docker/compose.yaml config --quiet

clean:  ## remove .venv, builds and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

say-test say-bench: say-%:
	@echo "gpuact: $(WHY), so the $(SET) set ($(CONSTRAINTS)):" \
		"$(if $(wildcard $(VENV)/.$(SET)-$*-$(KEY)),it is in $(VENV),installing it into $(VENV) …)"

# Another set starts from an empty .venv: two CuPy packages, or two builds of torch, do not mix.
$(VENV)/.$(SET):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gpuact needs Python 3.11 \
	or later; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(if $(wildcard $(addprefix $(VENV)/.,$(PINNED) oldest newest)),--clear) $(VENV)
	@touch $@

$(TEST) $(BENCH) $(DOCKER): $(VENV)/.$(SET)-%-$(KEY): $(VENV)/.$(SET)
	@$(PY) -c 'import sys, tomllib; \
		tree = tomllib.load(open("pyproject.toml", "rb")); project = tree["project"]; \
		sets = project["optional-dependencies"] | tree["dependency-groups"]; \
		print(*project["dependencies"], *(line for name in sys.argv[1:] for line in sets[name]), \
			sep="\n")' $(NEEDS_$*) > $@.txt
	$(if $(and $(TORCH_INDEX),$(filter torch,$(NEEDS_$*))), \
		$(PIP) --index-url $(TORCH_INDEX) --no-deps torch)
	$(PIP) --requirement $@.txt
	@find $(VENV) -maxdepth 1 -name '.$(SET)-*' ! -name '*-$(KEY)' -delete && touch $@
