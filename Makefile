# make demo   from no data to an identified pill on the embedded data set
# make test   install and run all tests
# make check  linter, formatter, types, architecture
# make bench  timings into benchmarks/results
# demo and test set up a bare machine (Python 3.11, make, git) by themselves.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
DATA := data/pills_dataset_resnet.zip
BUNDLE := artifacts/package/bundle

.PHONY: install demo test check bench deps lock

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,mqtt,dev]'
	$(BIN)/python -m pip check
	touch $@

$(DATA): | install
	pilltrack synth --pills 240 --photos 16 --seed 7 --out $@
	dvc add --quiet --force $@

demo: install $(DATA)
	dvc repro
	pilltrack report
	@pilltrack summary

test: install
	python -m pytest

check: install
	ruff check .
	ruff format --check .
	mypy
	python -m pytest -q tests/test_architecture.py tests/test_dvc.py

bench: install
	python benchmarks/synth_throughput.py
	python benchmarks/mobilenetv2_224.py --out build/mobilenetv2_224.tflite
	pilltrack bench --bundle $(BUNDLE) --against build/mobilenetv2_224.tflite
	python benchmarks/device_install.py
	python benchmarks/evaluation_scale.py

# Write the source files that each stage imports into dvc.yaml.
deps: install
	python -m tests.imports

# Freeze what is installed; run it after changing a pin in pyproject.toml.
lock: install
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' > constraints.txt
