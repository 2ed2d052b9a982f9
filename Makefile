# Everything a fresh machine with Python 3.11 needs: `make demo`, `make test`.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test exactness benchmark chaos many-shards lint format docs clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

# These start Rays beside ours, which would leave a token in the home folder.
benchmark chaos many-shards: export RAY_AUTH_MODE ?= disabled

setup: $(READY) ## a virtual environment with the locked versions

$(READY): requirements.lock requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@# CUDA's libraries first: their archives, 2.5 GB, are gone before those of the rest come to the same disk.
	grep --extended-regexp '^(cuda|nvidia|triton)' requirements.lock | xargs $(BIN)/pip install --quiet --no-compile --no-deps
	$(BIN)/pip install --quiet --no-compile --requirement requirements-dev.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@# Every worker of every run imports these: all but packages' own tests, and the hundreds of models of transformers.
	-$(BIN)/python -m compileall -q -j 0 -x '/(tests|transformers/models)/' $(VENV)/lib > /dev/null
	touch $@

demo: setup ## the main job on the embedded data set, feature visualisations, their pages: demo/run-*/report/index.html
	$(BIN)/python jobs/demo.py

# A crashed test process is not replaced: the others would wait for ever.
test: setup ## every test
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
		--durations 30 --durations-min 10 --ignore tests/test_out_of_memory.py
	$(BIN)/pytest tests/test_out_of_memory.py  # watches the whole machine's memory, so alone

exactness: setup ## compute the 800-image oracles anew (minutes), then compare with them
	$(BIN)/python tests/notebook_loop.py inceptionv1 tests/oracle/inceptionv1-random-0.npz
	$(BIN)/python tests/notebook_loop.py bvlc tests/oracle/bvlc-googlenet.npz
	EXEMPLAR_RAY_ALL_IMAGES=1 $(BIN)/pytest -rP tests/test_exactness.py tests/test_brute_force.py tests/test_check.py

benchmark: setup ## the notebook's loop, others' ways and the job, side by side, in benchmark/
	$(BIN)/python jobs/benchmark.py --data ../shared/data/imagenet-sample --out benchmark

chaos: setup ## 46 schedules of faults of machines and storage; every answer must be the undisturbed one, byte for byte
	$(BIN)/python tests/chaos.py --schedules 34 --data ../shared/data/imagenet-sample
	$(BIN)/python tests/chaos.py --job activations --schedules 6 --data ../shared/data/imagenet-sample
	$(BIN)/python tests/chaos.py --job visualize --schedules 6

many-shards: setup ## merge the synthetic parts of 100,000 shards, hold them against numpy, tell time and memory
	$(BIN)/python tests/many_shards.py

lint: setup ## style, common mistakes, types, and the rules of the house: who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: setup ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## the documentation as a site, in site/; a dead link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean: ## remove what the other targets made
	rm -rf $(VENV) demo build site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
