# Each target creates the environment it needs and can be run repeatedly.
#
# The environment is the active one if it has torch, else .venv in this folder. Installing is skipped until
# settings.ini, setup.py or pyproject.toml changes. PYTHON=/path/to/python chooses what .venv is made with.

HAS_TORCH := import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)
ACTIVE := $(firstword $(foreach env,$(VIRTUAL_ENV) $(CONDA_PREFIX),$(shell $(env)/bin/python -c '$(HAS_TORCH)' 2>/dev/null && echo $(env))))
ENV := $(or $(ACTIVE),.venv)
PY := $(ENV)/bin/python
INSTALLED := $(ENV)/.memory-vlm
INSTALLED_DEV := $(ENV)/.memory-vlm-dev
# Tests use no credentials (W&B reads its key from netrc), download nothing and leave no temporary files.
TEST := sh tools/scratch.sh env -u WANDB_API_KEY NETRC=/dev/null HF_HUB_OFFLINE=1
# pytest exits with status 5 if no test matches the marker.
NO_TESTS := || test $$? -eq 5

.PHONY: help demo check test test-slow docs bench

help:
	@echo "make demo       train a small CLIP without memory, with memory, and with memory that is read; compare them (minutes)"
	@echo "make check      check export, cleanness, imports, sizes and style (within a minute)"
	@echo "make test       check the notebooks, run them all, run the quick tests (minutes)"
	@echo "make test-slow  run the tests that take long"
	@echo "make docs       build the documentation into _docs/"
	@echo "make bench      measure ratios against other tools, and compare them with the committed ones (20 minutes)"

demo: $(INSTALLED)
	@echo "== 1 of 4: a small CLIP without memory learns captioned scenes"
	@$(PY) train.py experiment=scenes_pairs model/memory=off training.logging.name=demo_no_memory
	@echo "== 2 of 4: the same with memory tokens"
	@$(PY) train.py experiment=scenes_pairs training.logging.name=demo_memory
	@echo "== 3 of 4: the same, and captions are compared with the memory tokens"
	@$(PY) train.py experiment=scenes_pairs model.memory.readout=maxsim training.logging.name=demo_memory_read
	@echo "== 4 of 4: the three side by side"
	@$(PY) tools/compare.py runs/demo_no_memory runs/demo_memory runs/demo_memory_read
	@echo "Five seeds of each, with controls: nbs/explain/memory_that_is_read.ipynb"

check: $(INSTALLED_DEV)
	@$(PY) tools/check.py

test: $(INSTALLED_DEV)
	@echo "== 1 of 3: make check"
	@$(PY) tools/check.py
	@echo "== 2 of 3: run all notebooks"
	@$(TEST) OMP_NUM_THREADS=1 $(ENV)/bin/nbdev-test --n-workers 2 --timing
	@echo "== 3 of 3: quick tests"
	@$(TEST) OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal --durations=10 $(NO_TESTS)

test-slow: $(INSTALLED_DEV)
	@echo "== 1 of 2: notebooks with slow cells"
	@for nb in $$(grep -rl --include='*.ipynb' --exclude-dir='.*' '#| *slow' nbs); do \
		echo "$$nb"; $(TEST) OMP_NUM_THREADS=1 $(ENV)/bin/nbdev-test "$$nb" --flags slow --cell-timeout 600 || exit 1; done
	@echo "== 2 of 2: slow tests"
	@$(TEST) $(PY) -m pytest -m slow $(NO_TESTS)

docs: $(INSTALLED_DEV)
	@$(PY) tools/docs.py

bench: $(INSTALLED_DEV)
	@$(PY) benchmarks/suite.py

$(INSTALLED): settings.ini setup.py pyproject.toml | $(PY)
	@echo "== Installing Memory-VLM into $(ENV) (the first time several GB of PyTorch: some minutes)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(INSTALLED_DEV): settings.ini setup.py pyproject.toml | $(PY)
	@echo "== Installing Memory-VLM and the tools to work on it into $(ENV) (the first time several GB: some minutes)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev,export]'
	@touch $(INSTALLED) $@

.venv/bin/python:
	@sh tools/environment.sh
