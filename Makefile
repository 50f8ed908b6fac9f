# Every command has a name; `make` alone lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
KSERVE := .venv-kserve/.installed

.PHONY: help install demo test docs constraints clean
help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "toposerve needs Python 3.11 or newer; this is %s. Set PYTHON=python3.11." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[worker,s3,demo,test]'
	$(BIN)/python -m topology  # compiles the kernels once, so that no request and no test pays for it
	@touch $(STAMP)

# kserve's client wants other versions than ours, so it lives apart; no bytecode of what is never imported.
$(KSERVE): tests/protocols/kserve.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-deps --no-compile --disable-pip-version-check --requirement $<
	@touch $@

install: $(STAMP)  ## create .venv and install everything, pinned

demo: install  ## the whole story: upload, train, export, predict, show
	$(BIN)/toposerve demo

test: install $(KSERVE)  ## every test, on SQLite and on a real Postgres and Redis
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

docs: install  ## write docs/reference from the code
	$(BIN)/python docs/reference/make.py

constraints: install  ## write the versions now in .venv to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(pip|setuptools|torch)==' > constraints.txt
	@echo 'torch==2.13.0' >> constraints.txt

clean:  ## remove what `make` made
	rm -rf $(VENV) $(dir $(KSERVE)) .demo
