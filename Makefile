# The same commands for people and CI. Each works by itself on a clean checkout: it makes the environment first.
VENV ?= .venv
PYTHON := $(VENV)/bin/python
export VENV

# Ranks on one machine: one thread each unless told otherwise, and talking over the loopback.
export OMP_NUM_THREADS ?= 1
export GLOO_SOCKET_IFNAME ?= $(if $(filter Darwin,$(shell uname -s)),lo0,lo)

.DEFAULT_GOAL := help
# A test that does not end fails with the place where it stood, and the others go on.
HUNG = -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true

.PHONY: help setup demo test test-slow parity gpu curves mutants check docs bench bench-gpu bench-data bench-evaluation ablation faults slurm image-check clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-23s %s\n", $$1, $$2}'

setup: ## the environment in .venv: 3 minutes the first time, nothing to do the next (scripts/setup.sh tells the options)
	@bash scripts/setup.sh

demo: setup ## a small run from start to end on this machine
	$(PYTHON) scripts/demo.py

test: setup ## the tests, but for the slow ones, on up to four cores; ARGS="-k moe" to choose, ARGS="-n 0 --pdb" to look into one
	$(PYTHON) -m pytest -n logical --maxprocesses 4 --dist worksteal $(HUNG) $(ARGS)

test-slow: setup ## the slow tests
	$(PYTHON) -m pytest -m slow $(ARGS)

parity: setup ## up to eight ranks in every arrangement, and checkpoints from every layout to every other
	$(PYTHON) -m pytest -m parity $(ARGS)

gpu: setup ## on one GPU what the other tests force on the CPU; without a GPU all of it is skipped, and says so
	$(PYTHON) -m pytest -m gpu $(ARGS)

curves: setup ## 30 steps of two trainings against the losses that are written down: half a minute; ARGS="--write" writes them anew
	$(PYTHON) scripts/curves.py $(ARGS)

mutants: setup ## mistakes put into the source one at a time, which the tests must see: hours; ARGS="--sample 50" for a part
	$(PYTHON) scripts/mutate.py $(ARGS)

check: setup ## lint, format, types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

docs: setup ## the documentation as a site in site/; fails at a warning or a link that leads nowhere
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet
	$(PYTHON) -m pytest -q tests/test_docs.py

bench: setup ## what a sparse block costs against a dense one and DeepSpeed's, on one rank and two
	$(PYTHON) -m benchmarks.moe_layer

bench-gpu: setup ## steps of presets at full size on this device: MFU, memory, phases, other programs' blocks; ARGS="--presets limoe_h14 --experts 8"
	$(PYTHON) -m benchmarks.gpu_step $(ARGS)

bench-data: setup ## reading and decoding against webdataset's pipeline and decoding alone; ARGS="--data FOLDER" for real files
	$(PYTHON) -W ignore -m benchmarks.data $(ARGS)

bench-evaluation: setup ## what evaluating costs besides the network; ARGS="--parts captions" for a part
	$(PYTHON) -m benchmarks.evaluation $(ARGS)

ablation: setup ## dense, six routers and LIMoE on the demo's world, three seeds: 20 minutes on two cores; ARGS="--seeds 1"
	$(PYTHON) -m data.synthetic --out data_demo
	$(PYTHON) -m benchmarks.ablation $(ARGS)

faults: setup ## a hundred random faults while training, after each of which the same command must go on: an hour; ARGS="--count 10"
	$(PYTHON) -m scripts.faults $(ARGS)

slurm: ## Slurm for its slow tests (root, Debian)
	bash scripts/slurm_here.sh

image-check: ## builds the Dockerfile's CPU variant without a Docker engine and runs the program in it (root, Debian)
	bash scripts/image_check.sh

clean: ## removes .venv and the tools' caches
	rm -rf site .venv .venv.unfinished .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
