# Every target works on a machine that has Python 3.11 or newer, git and make, and nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help install demo images test lint format protos check-protos constraints clean

help:             ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

install: $(READY) ## .venv with everything a developer needs, pinned by constraints.txt

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt torch 'setuptools>=77' wheel
	$(PIP) --constraint constraints.txt --no-build-isolation --editable '.[train,optimize,serve,client,postgresql,otel,openvino,demo,dev]'
	touch $@

demo: $(READY)    ## The whole loop on real data: fine-tune, optimise, certify, serve, call
	$(BIN)/python demo.py --out demo-out

images: $(READY)  ## Build both images and run the loop in them; about a quarter of an hour
	$(BIN)/python -m deploy.images

test: $(READY)    ## Every test
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(READY)    ## ruff, and mypy strict on the installed tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/lint build/lib
	$(PIP) --no-deps --no-build-isolation --target build/lint .
	MYPYPATH=build/lint $(BIN)/mypy -p edgewright

format: $(READY)  ## Rewrite the code in the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(READY)  ## Generate src/edgewright/v1 and oip from protos/
	$(BIN)/python protos/generate.py

check-protos: $(READY)  ## Fail where generated code is not what protos/ gives
	$(BIN)/python protos/generate.py --check

constraints: $(READY)  ## Pin what is installed in .venv
	$(BIN)/python -m pip freeze --exclude-editable --exclude edgewright | sed 's/+cpu$$//' | LC_ALL=C sort -f > constraints.txt

clean:            ## Remove what can be made again
	rm -rf build dist demo-out $(VENV) *.egg-info src/*.egg-info
