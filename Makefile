# Thin: what can be typed, no logic. `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/quickstart.yaml
GRID ?= smoke
ARGS ?=

BIN := $(VENV)/bin
DRY_RUN ?= $(findstring n,$(firstword -$(MAKEFLAGS)))
CLUSTER := $(if $(GPUS),--cluster.accelerator=cuda --cluster.devices=$(GPUS))
CLUSTER += $(if $(PROCS),--cluster.accelerator=cpu --cluster.devices=$(PROCS))
SLURM := $(if $(GPUS),--gpus=$(GPUS)) $(if $(PROCS),--procs=$(PROCS)) $(if $(NODES),--nodes=$(NODES))
SLURM += $(if $(TIME),--time=$(TIME)) $(if $(PARTITION),--partition=$(PARTITION))
SLURM += $(if $(DRY_RUN),--dry-run)

.DEFAULT_GOAL := help
.PHONY: help install train resume grid slurm test reference lint format bench clean

help: ## list what can be typed
	@echo "fedgan: federated GAN training, attacks and defences"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "variables: CONFIG=configs/x.yaml  GPUS=4 (CUDA devices)  PROCS=2 (CPU processes)"
	@echo "           NODES=2 TIME=12:00:00 PARTITION=gpu DRY_RUN=1 (slurm, and GPUS or PROCS of a node)"
	@echo "           ARGS=\"--federation.rounds=5 --overwrite\"  RUN=runs/x (resume)"
	@echo "           GRID=smoke JOBS=2 (grid)"

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "fedgan needs Python 3.10 or newer; PYTHON=python3.12 make ... names another"; exit 2; }
	@echo "installing fedgan and what it needs into $(VENV) (some 6 GB, once; minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/.installed ## make .venv with everything in it (the other targets do so by themselves)

train: $(VENV)/.installed ## train CONFIG (quickstart: 4 hospitals, one of them poisons)
	@$(BIN)/fedgan train $(CONFIG) $(CLUSTER) $(ARGS)

resume: $(VENV)/.installed ## go on with the run in RUN=runs/x
	@$(BIN)/fedgan resume $(RUN)

grid: $(VENV)/.installed ## train a comparison: GRID (smoke: 12 cells), JOBS of them at a time
	@$(BIN)/fedgan grid $(GRID) $(if $(JOBS),--jobs=$(JOBS)) $(ARGS)

slurm: $(VENV)/.installed ## train CONFIG as a SLURM job that requeues and resumes itself
	+@$(BIN)/fedgan slurm $(CONFIG) $(SLURM) $(ARGS)

test: $(VENV)/.installed ## run the tests; ARGS="-m 'not slow'" leaves the slow ones out
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/python -m pytest $(ARGS)

# Sees all that .venv holds, and has beside it what the two libraries want in other versions.
$(VENV)-reference/.installed: $(VENV)/.installed
	@echo "installing byzfl and flwr into $(VENV)-reference (0.2 GB, once)"
	@$(BIN)/python -m venv $(VENV)-reference
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$($(VENV)-reference/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth
	@$(VENV)-reference/bin/python -m pip install --quiet --disable-pip-version-check -e '.[reference]'
	@touch $@

reference: $(VENV)-reference/.installed ## compare rules and attacks with byzfl and flwr
	@FEDGAN_REQUIRE_REFERENCE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} \
	  $(VENV)-reference/bin/python -m pytest -m reference tests/reference $(ARGS)

lint: $(VENV)/.installed ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.installed ## let ruff put the code in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.installed ## measure speed: tables on the screen
	@$(BIN)/python benchmarks/local_step.py
	@$(BIN)/python benchmarks/scaling.py

clean: ## delete caches and builds; runs and .venv stay
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
