# For a fresh machine: each target makes its own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint pose_small clean

demo: $(VENV)/installed
	$(BIN)/rle-tf demo

test: $(VENV)/installed-dev lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .

# The trainings of pose_small, each from the one before.
POSE_SMALL := $(patsubst %,pose_small_%,first second third fourth fifth sixth seventh) pose_small

# The model that comes with the package, from DATA (lspet/ and coco/) and WEIGHTS, an .npz of
# ImageNet's; see MODEL_CARD.md. A run that was interrupted goes on where it stopped. All eight
# trainings take ARGS.
pose_small: $(VENV)/installed
	$(if $(and $(DATA),$(WEIGHTS)),,$(error make pose_small DATA=FOLDER WEIGHTS=FILE.npz))
	@set -e; for name in $(POSE_SMALL); do \
		set -- configs/$$name.yaml --data-root "$(DATA)" --out runs/$$name; \
		if [ $$name = pose_small_first ]; then set -- "$$@" --set model.weights="$(WEIGHTS)"; fi; \
		if [ -e runs/$$name/config.yaml ]; then set -- "$$@" --resume; fi; \
		$(BIN)/rle-tf train "$$@" $(ARGS); \
	done
	$(BIN)/rle-tf calibrate runs/pose_small
	$(BIN)/rle-tf export runs/pose_small --half-weights --format savedmodel --format litert \
		--precision int8 --precision float16 --flip-test --report

clean:
	rm -rf $(VENV) build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is $$($(PYTHON) --version); rle-tf needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python setup.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-dev: $(BIN)/python setup.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(VENV)/installed $@
