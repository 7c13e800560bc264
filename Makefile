# make demo: a hundred class-ordered pictures of fashion-28 in samples.png, and of glyphs-32 in samples-glyphs.png.
# make test: lint, types, tests, notebooks, the site.
# Both create .venv on first use: demo installs what dinit itself needs, test the extra [dev] as well.
# make quick leaves the slow tests out. make docs builds the site in build/site. make notebooks opens Jupyter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# One thread a process: two test processes share the cores better than threads do.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test quick lint docs notebooks dist pretrained install clean

demo: $(RUNTIME)
	$(BIN)/dinit generate fashion-28 --classes all --per-class 10 --out samples.png --overwrite
	$(BIN)/dinit generate glyphs-32 --classes A,B,C,D,E,F,G,H,I,J --per-class 10 --out samples-glyphs.png --overwrite

test: $(INSTALLED) lint
	$(PYTEST)

quick: $(INSTALLED)
	$(PYTEST) -m "not slow and not notebook"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file docs/site/mkdocs.yml --site-dir $(CURDIR)/build/site
	@echo "open build/site/index.html"

notebooks: $(INSTALLED)
	$(BIN)/jupyter lab examples

# Wheel and sdist in dist/, with the description checked as a package index renders it.
dist: $(INSTALLED)
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# Trains the shipped pipelines again from their recipes: three hours on 2 cores, of which fashion-28 and glyphs-32 take
# 51 minutes each, and digits-dis half an hour. fashion-28 needs Debian's package dataset-fashion-mnist.
pretrained: $(INSTALLED)
	for name in digits-dic digits-dico digits-dis digits-dit digits-unet glyphs-32 fashion-28; do \
		half=$$(test $$name = fashion-28 && echo --half); \
		$(BIN)/dinit train $$name --out runs/$$name && \
		rm -rf dinit/pretrained/$$name && \
		$(BIN)/python -m dinit.pipelines.runs.card runs/$$name/pipeline --to dinit/pretrained/$$name $$half || exit 1; \
	done

install: $(INSTALLED)

$(RUNTIME): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(INSTALLED): $(RUNTIME)
	$(PIP) --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist samples.png samples-glyphs.png
