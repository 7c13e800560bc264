# make demo: a hundred class-ordered digits in samples.png.   make test: lint, types, tests, notebooks.
# Both create .venv and install everything on first use. make quick leaves the slow tests out.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One thread a process: two test processes share the cores better than threads do.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test quick lint pretrained install clean

demo: $(INSTALLED)
	$(BIN)/dinit generate digits-dico --classes all --per-class 10 --out samples.png --overwrite

test: $(INSTALLED) lint
	$(PYTEST)

quick: $(INSTALLED)
	$(PYTEST) -m "not slow and not notebook"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Trains the shipped pipelines again from their recipes (two hours on 2 cores: half an hour for digits-dis, 51 minutes for glyphs-32).
pretrained: $(INSTALLED)
	for name in digits-dic digits-dico digits-dis digits-dit digits-unet glyphs-32; do \
		$(BIN)/dinit train $$name --out runs/$$name && \
		rm -rf dinit/pretrained/$$name && \
		$(BIN)/python -m dinit.pipelines.runs.card runs/$$name/pipeline --to dinit/pretrained/$$name || exit 1; \
	done

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) samples.png
