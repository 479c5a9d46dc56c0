# Research use only, not a medical device. `make help` lists the targets.
PYTHON ?= $(shell for p in python3.11 python3 python; do $$p -c '$(IS_311)' 2>/dev/null && { command -v $$p; break; }; done)
PORT = 8000
TEST_PROCESSES = 3
HOST = 127.0.0.1
DEVICE = auto
STUDIES =
MODEL =
MODALITY =
DICOMWEB_USER =
ONCE =
ARGS =
STEPS = 1250
DATA = $(or $(APP_CDM_DATA),../shared/data)
SCORER = ../shared/tools/score_rest.py

IS_311 = import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))
VENV := $(CURDIR)/.venv
RUN := PATH="$(VENV)/bin:$$PATH" "$(VENV)/bin/python"
PIP := "$(VENV)/bin/python" -m pip install -qq --disable-pip-version-check --no-input
# One stamp a set of requirements: another set is installed, the same one is not looked at again.
HASH := $(shell cat requirements.txt requirements-nodeps.txt | cksum | tr -d ' ')
DEV_HASH := $(shell cat requirements.txt requirements-nodeps.txt requirements-dev.txt | cksum | tr -d ' ')
STAMP := .venv/.setup-$(HASH)
DEV_STAMP := .venv/.setup-dev-$(DEV_HASH)
quote = '$(subst ','\'',$(1))'

.PHONY: help setup setup-dev demo pacs-demo serve train benchmark test test-e2e check format clean vendor benchmark-loop benchmark-active benchmark-speed test-faults
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@echo 'make setup                     pinned virtual environment in .venv (needs Python 3.11)'
	@echo 'make demo [ONCE=1] [PORT=8000] server on a synthetic study, masks checked, figure in demo/; ONCE=1 stops after it'
	@echo 'make pacs-demo [PORT=8000]      Orthanc with demo studies, the server on it, the address of OHIF (needs orthanc orthanc-dicomweb)'
	@echo 'make serve STUDIES=<folder or DICOMweb URL> [PORT=8000] [HOST=127.0.0.1] [MODEL=<name>] [DEVICE=auto|cpu|cuda]'
	@echo "                               [ARGS='...'] further options of python -m lib.serve, such as --classes"
	@echo '  of a DICOMweb server also     [MODALITY=all|MR,CT] [DICOMWEB_USER=<name>], the password in MONAI_LABEL_DICOMWEB_PASSWORD'
	@echo 'make test                      all tests; those with a PACS and a browser are skipped where Orthanc or Chromium is missing'
	@echo 'make test-e2e                  the tests with a real PACS and a real browser alone; screenshots in build/e2e/'
	@echo 'make test-faults               kills server and trainer fifty times at random moments'
	@echo 'make train [DATA=<folder>]     retrains the model that ships, about an hour and a half on two cores; resumes where it was stopped'
	@echo 'make benchmark [DATA=] [SCORER=] scores the server and writes docs/benchmark.md; benchmarks/README.md says what both must be'
	@echo 'make benchmark-loop [DATA=] [SCORER=] [STEPS=1250] learning curve: tags over REST, trains, scores; ten hours on two cores, resumes where it was stopped'
	@echo 'make benchmark-active [DATA=]  Next Sample by doubt against random order, simulated on tags; a quarter of an hour on one core'
	@echo 'make benchmark-speed [DATA=]   what inference, training and cohorts cost, as ratios; writes docs/performance.md'
	@echo 'make check                     format, lint, types, import directions'
	@echo 'make format                    applies the format'
	@echo 'make vendor                    fetches the viewer of the tagging page from npm again, and checks it'
	@echo 'make clean                     removes caches and what the demo wrote; .venv stays'

setup: $(STAMP)

$(STAMP):
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(IS_311)' 2>/dev/null || { \
	  echo 'Python 3.11 with venv is needed and was not found: install it (Debian: python3.11 python3.11-venv),' >&2; \
	  echo 'or say where it is: make setup PYTHON=/path/to/python3.11' >&2; exit 1; }
	@if test -x .venv/bin/python && ! .venv/bin/python -c '$(IS_311)' 2>/dev/null; then \
	  echo '.venv holds another Python than 3.11: remove it (rm -r .venv) and run make again.' >&2; exit 1; fi
	@test -x .venv/bin/python || { echo 'Making .venv ...'; "$(PYTHON)" -m venv .venv; }
	@echo 'Installing the pinned packages (about 2.6 GB, some minutes the first time; several more with a GPU build of torch) ...'
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps -r requirements-nodeps.txt
	@rm -f .venv/.setup-* && touch $@
	@echo 'Ready: .venv'

setup-dev: $(DEV_STAMP)

$(DEV_STAMP): $(STAMP)
	@echo 'Installing the tools for tests and checks ...'
	@$(PIP) -r requirements-dev.txt
	@touch $@

demo: setup
	@$(RUN) -m demo --device $(call quote,$(DEVICE)) $(if $(filter-out 0,$(ONCE)),--once) $(if $(filter command line,$(origin PORT)),--port $(call quote,$(PORT)))

pacs-demo: setup
	@$(RUN) -m demo.pacs --device $(call quote,$(DEVICE)) $(if $(filter-out 0,$(ONCE)),--once) $(if $(filter command line,$(origin PORT)),--port $(call quote,$(PORT)))

serve: setup
	@test -n $(call quote,$(STUDIES)) || { echo 'Say what to serve: make serve STUDIES=<folder or DICOMweb URL>' >&2; exit 2; }
	@$(RUN) -m lib.serve --studies $(call quote,$(STUDIES)) --host $(call quote,$(HOST)) --port $(call quote,$(PORT)) \
	  --device $(call quote,$(DEVICE)) $(if $(MODEL),--model $(call quote,$(MODEL))) \
	  $(if $(MODALITY),--modality $(call quote,$(MODALITY))) $(if $(DICOMWEB_USER),--dicomweb-user $(call quote,$(DICOMWEB_USER))) $(ARGS)

LGG = --images "$(DATA)/lgg/images" --tags "$(DATA)/lgg/slices.csv" --pattern '{image}_flair.nii.gz' --classes tumor=has_lesion

SYNTHETIC = --images runs/synthetic/images --tags runs/synthetic/slices.csv --pattern '{image}_flair.nii.gz'

# From random weights on lgg, a short second run with synthetic studies added, then decoder and student, then the gate of all and the numbers
# of the baselines; see model/cdm_lgg_flair.md.
train: setup
	@test -f runs/synthetic/slices.csv || $(RUN) -m demo.study --out runs/synthetic --cases 20 --seed 1000
	@$(RUN) -m app_cdm train $(LGG) --split train --preset tiny --seed 0 --diffusion-steps 4591 --output runs/lgg_flair
	@$(RUN) -m app_cdm train $(LGG) $(SYNTHETIC) --split train --preset tiny --seed 0 --initial-model runs/lgg_flair/model \
	  --classifier-steps 1000 --diffusion-steps 600 --output runs/lgg_flair_synthetic
	@$(RUN) -m app_cdm calibrate --model runs/lgg_flair_synthetic/model $(LGG) --split val --output runs/lgg_flair_calibrated
	@$(RUN) -m app_cdm train $(LGG) $(SYNTHETIC) --split train --preset tiny --seed 0 --initial-model runs/lgg_flair_calibrated \
	  --stages cldf student --output runs/lgg_flair_student
	@$(RUN) -m app_cdm calibrate --model runs/lgg_flair_student/model $(LGG) --split val --modes all --output model/cdm_lgg_flair

benchmark: setup
	@$(RUN) -m benchmarks.cldf_ablations --data "$(DATA)"
	@$(RUN) -m benchmarks.refinement_agreement --data "$(DATA)"
	@$(RUN) -m benchmarks.qualitative --data "$(DATA)"
	@test -f runs/synthetic/slices.csv || $(RUN) -m demo.study --out runs/synthetic --cases 20 --seed 1000
	@$(RUN) -m benchmarks.seeds --data "$(DATA)" --scorer "$(SCORER)"
	@$(RUN) -m benchmarks.methods --data "$(DATA)" --scorer "$(SCORER)"

# STEPS of the diffusion model in each of the three trainings, and two more with the budget of the model that ships, in steps and in minutes.
benchmark-loop: setup
	@for dataset in lgg busi acdc_rv; do $(RUN) -m benchmarks.loop --dataset $$dataset --data "$(DATA)" --scorer "$(SCORER)" \
	  --steps $(call quote,$(STEPS)) --device $(call quote,$(DEVICE)) || exit 1; done

benchmark-active: setup
	@$(RUN) -m benchmarks.active --data "$(DATA)"

benchmark-speed: setup
	@$(RUN) -m benchmarks.speed --data "$(DATA)"

test: setup-dev
	@$(RUN) -m pytest -q -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder tests

test-e2e: setup-dev
	@APP_CDM_WHOLE_SERIES=1 $(RUN) -m pytest -q tests/e2e

# Fifty kills of server and trainer; the short version is part of `make test`.
test-faults: setup-dev
	@APP_CDM_FAULTS=50 $(RUN) -m pytest -q tests/host/test_faults.py -o log_cli=true -o log_cli_level=INFO

check: setup-dev
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy
	@$(RUN) -m pytest -q tests/test_imports.py

format: setup-dev
	@$(RUN) -m ruff format .
	@$(RUN) -m ruff check --fix-only .

vendor: setup
	@$(RUN) -m lib.page.niivue

clean:
	@rm -rf demo/workspace demo/cache demo/figure.png build .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
