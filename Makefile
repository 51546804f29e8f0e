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

# The model that comes with the package, from DATA (lspet/ and coco/) and WEIGHTS, an .npz of
# ImageNet's; see MODEL_CARD.md. A run that was interrupted goes on where it stopped. All eight
# trainings take ARGS.
pose_small: $(VENV)/installed
	$(if $(and $(DATA),$(WEIGHTS)),,$(error make pose_small DATA=FOLDER WEIGHTS=FILE.npz))
	$(BIN)/rle-tf train configs/pose_small_first.yaml --data-root $(DATA) \
		--out runs/pose_small_first --set model.weights=$(WEIGHTS) $(ARGS) \
		$(if $(wildcard runs/pose_small_first/config.yaml),--resume)
	$(BIN)/rle-tf train configs/pose_small_second.yaml --data-root $(DATA) \
		--out runs/pose_small_second $(ARGS) \
		$(if $(wildcard runs/pose_small_second/config.yaml),--resume)
	$(BIN)/rle-tf train configs/pose_small_third.yaml --data-root $(DATA) \
		--out runs/pose_small_third $(ARGS) \
		$(if $(wildcard runs/pose_small_third/config.yaml),--resume)
	$(BIN)/rle-tf train configs/pose_small_fourth.yaml --data-root $(DATA) \
		--out runs/pose_small_fourth $(ARGS) \
		$(if $(wildcard runs/pose_small_fourth/config.yaml),--resume)
	$(BIN)/rle-tf train configs/pose_small_fifth.yaml --data-root $(DATA) \
		--out runs/pose_small_fifth $(ARGS) \
		$(if $(wildcard runs/pose_small_fifth/config.yaml),--resume)
	$(BIN)/rle-tf train configs/pose_small_sixth.yaml --data-root $(DATA) \
		--out runs/pose_small_sixth $(ARGS) \
		$(if $(wildcard runs/pose_small_sixth/config.yaml),--resume)
	$(BIN)/rle-tf train configs/pose_small_seventh.yaml --data-root $(DATA) \
		--out runs/pose_small_seventh $(ARGS) \
		$(if $(wildcard runs/pose_small_seventh/config.yaml),--resume)
	$(BIN)/rle-tf train configs/pose_small.yaml --data-root $(DATA) --out runs/pose_small $(ARGS) \
		$(if $(wildcard runs/pose_small/config.yaml),--resume)
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
