# `make demo` and `make test` need nothing but Python 3.11 or newer: each makes .venv itself.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
CHECKOV ?= .venv-checkov
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test unit bench gpu bars faults manifests image pods docs check format clean

demo: $(VENV)/.run
	$(BIN)/dreambooth demo

# Two processes at once, each with whole files of tests and servers of its own; JOBS=0 runs them in one.
# In the order of their folders: the long files come first, and the short ones fill what is left.
JOBS ?= 2
PARALLEL := -n $(JOBS) --dist loadfile --no-loadscope-reorder
test: $(VENV)/.dev
	$(BIN)/python -m pytest tests -m "not demo and not fault" $(PARALLEL)

unit: $(VENV)/.dev
	$(BIN)/python -m pytest tests/unit -m "not fault" $(PARALLEL)

# Kills, cuts and load: minutes each. Those with several hosts need root and iproute2.
# PART=1, 2 or 3 runs a third of them; thirds take as long as each other by what is on record, which
# RECORD=1 makes anew. Ratios of speed come last, of the first third: nothing else may run then.
PARTS := 3
faults: $(VENV)/.dev
	$(BIN)/python -m pytest tests -m "fault and not alone" $(PARALLEL) \
	  --durations-path tests/fault_durations.json \
	  $(if $(PART),--splits $(PARTS) --group $(PART)) $(if $(RECORD),--store-durations --clean-durations)
	$(if $(filter-out 1,$(PART)),,$(BIN)/python -m pytest tests -m "fault and alone")

# checkov over the rendered manifests and the Dockerfiles; its pins clash with ours: a venv of its own.
manifests: $(VENV)/.dev $(CHECKOV)/.made
	rm -rf out/manifests && mkdir -p out/manifests
	for overlay in k8s/overlays/*; do \
	  $(BIN)/kubectl kustomize $$overlay > out/manifests/$$(basename $$overlay).yaml || exit 1; done
	$(CHECKOV)/bin/checkov --skip-download --quiet --compact --framework kubernetes --directory out/manifests
	$(CHECKOV)/bin/checkov --skip-download --quiet --compact --framework dockerfile --directory k8s/docker

# The image of KIND, built by buildah as root, over a Debian made by debootstrap or the image that BASE
# names. pip in the build has the settings of pip here; the CPU's image wants torch's CPU build, from
# an index or a folder in them. Then the CPU's image is run as pods run it, by runc. `make pods` runs
# the overlays in pods of it, some quarter of an hour.
KIND ?= cpu
IMAGE ?= dreambooth-ray:0.1.0-$(KIND)
image: $(VENV)/.dev
	$(BIN)/python k8s/docker/build.py $(KIND) --tag $(IMAGE) $(if $(BASE),--base $(BASE)) \
	  $(if $(filter cpu,$(KIND)),--build-arg TORCH=torch==2.13.0+cpu)
	$(if $(filter cpu,$(KIND)),DREAMBOOTH_IMAGE=$(IMAGE) \
	  $(BIN)/python -m pytest tests/integration/test_image.py -m fault)

pods: $(VENV)/.dev
	DREAMBOOTH_IMAGE=$(IMAGE) $(BIN)/python -m pytest -m fault \
	  tests/integration/test_pods.py tests/integration/test_overlay_pods.py

# All themes of `dreambooth bench`, their plot, and the table of docs/performance.md. Wants a quiet machine.
THEMES ?= sample train wholejob settings priors scaling serve checkpoint startup fullsize
PROFILE ?= full
bench: $(VENV)/.dev
	for theme in $(THEMES); do $(BIN)/dreambooth bench $$theme --profile $(PROFILE) \
	  --json benchmarks/results/$$theme.json > /dev/null || exit 1; done
	$(BIN)/dreambooth bench report --readme docs/performance.md

# What only a GPU can show, on one card, without Ray or a network; DRY=1 tries every path on a CPU.
gpu: $(VENV)/.dev
	$(BIN)/python -m benchmarks.gpu $(if $(DRY),--dry --out out/gpu-dry.json)

# Whole trainings and their bars: the demo, real photographs, another model's sizes, two subjects.
bars: $(VENV)/.dev
	$(BIN)/python -m pytest tests -m demo

# The site in out/site; pages that are made from code must be up to date, every link must lead somewhere.
docs: $(VENV)/.dev
	$(BIN)/python docs/make_reference.py --check
	$(BIN)/zensical build --clean --strict

check: $(VENV)/.dev docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(CHECKOV) out dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch --editable .
	touch $@

$(CHECKOV)/.made:
	$(PYTHON) -m venv $(CHECKOV)
	$(CHECKOV)/bin/python -m pip install --quiet --disable-pip-version-check checkov==3.3.30
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) --editable ".[dev]"
	touch $@
