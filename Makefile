PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Re-made only when the requirements change, so that a second `make` starts at once.
STAMP  := $(VENV)/.installed
NEEDED := requirements-dev.txt

.PHONY: install demo test quick same-as check-cuda lint format bench bench-gpu atlas wheelhouse

install: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt $(NEEDED)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 14) else \
	  "Python %d.%d found, 3.10 to 3.14 needed: run e.g. make PYTHON=python3.11 install" % v)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing what $(NEEDED) names into $(VENV). It takes 3.7 GB there with a CPU build"
	@echo "of torch, more with CUDA, and some minutes:"
	$(BIN)/python -m pip install -r $(NEEDED)
	@touch $(STAMP)

# As many ranks as there are GPUs, or two on the CPU: `make demo RANKS=1` for another number.
RANKS ?= $(shell $(BIN)/python -c 'import torch; print(torch.cuda.device_count() or 2)')
demo: $(STAMP)
	@echo "The demo first draws 10,000 faces of 400 people and pairs of 200 others, in well under a"
	@echo "minute, then trains on them; the line that begins with 'time' says how long that takes."
# One that was stopped goes on; one that has finished begins again.
	@! grep -qs '"finished": true' runs/demo/state.json || rm -rf runs/demo
	$(BIN)/python tools/make_synthetic.py runs/demo_data --size 64
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc_per_node=$(RANKS) \
	  train_dist.py configs/demo.py

# A process for each core, four at most, for memory; a file's tests stay together with what they share.
TEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: $(STAMP)
	$(TEST)

# Without the tests that take more than half a second each: under two minutes.
quick: $(STAMP)
	$(TEST) -m "not slow"

# Whether this work tree trains as REV does, bit for bit; a minute or two: see CONTRIBUTING.md.
REV ?= HEAD~1
same-as: $(STAMP)
	$(BIN)/python -m tests.same_as $(REV)

# Devices never mix. An environment of its own, because a CUDA build of torch takes several GB.
check-cuda:
	@$(MAKE) --no-print-directory install VENV=.venv-cuda NEEDED=requirements-cuda.txt
	.venv-cuda/bin/python -m pytest -rs tests/test_fake_cuda.py
	.venv-cuda/bin/python -m pytest -rs -m gpu

# On the CPU, in at most a quarter of an hour on two cores; it writes benchmarks/README.md.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.suite --device cpu

# The same on all GPUs of this machine, in at most eight minutes: see docs/gpu.md.
bench-gpu: $(STAMP)
	$(BIN)/python -m benchmarks.suite

# Losses and sample rates on drawn faces, 45 trainings of half a minute: see docs/atlas.md. One that
# was stopped goes on with what is missing.
atlas: $(STAMP)
	$(BIN)/python benchmarks/atlas.py --faces runs/atlas

# What a machine with GPUs and without a package index lacks, in pieces: see docs/gpu.md.
wheelhouse: $(STAMP)
	$(BIN)/python launch/offline/collect.py wheelhouse

# Which room may import which is in each room's ruff.toml.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
