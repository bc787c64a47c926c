# Two commands do all the set-up: `make sweep` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: sweep test coverage lint types wheel base interop chaos faults thorough scale gpu gpu-smoke gpu-wheels clean

sweep: .venv/.installed ## install if need be, then run the default sweep
	$(BIN)/python -m lrsweep +sweep=lora_lr

test: .venv/.installed-test ## install if need be, then run every test
	$(BIN)/python -m pytest -n 2 --dist loadgroup

coverage: .venv/.installed-test ## the tests, with a report of the lines that they miss, worker processes included
	$(BIN)/python -m pytest -n 2 --dist loadgroup --cov --cov-report term:skip-covered --cov-report html

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-test
	$(BIN)/mypy

wheel: .venv/.installed-test
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

base: .venv/.installed ## pretrain the embedded model anew (about five minutes on 2 cores)
	$(BIN)/python -m lrsweep.embedded.pretrain

# The trainers read and train what we export, each in an environment of its own, as their pins exclude ours.
# torch alone comes with its dependencies: the registry has torchvision and torchaudio for CUDA only. LLaMA-Factory does without
# the one; it imports the other, which does without its libraries.
INTEROP := .tmp/interop
interop: .venv/.installed-test $(INTEROP)/llamafactory/.installed $(INTEROP)/trl/.installed $(INTEROP)/axolotl/.installed \
		$(INTEROP)/ms-swift/.installed
	$(BIN)/python -m pytest tests/dialects/test_tools.py tests/dialects/test_llamafactory.py tests/dialects/test_trl.py \
		tests/dialects/test_preferences.py tests/dialects/test_axolotl.py tests/dialects/test_ms_swift.py tests/training/test_loss.py

$(INTEROP)/llamafactory/.installed: TOOL = llamafactory==0.9.5 torchaudio==2.11.0
$(INTEROP)/trl/.installed: TOOL = trl==1.16.0
$(INTEROP)/axolotl/.installed: TOOL = axolotl==0.19.0 axolotl-contribs-lgpl==0.0.7 axolotl-contribs-mit==0.0.6
$(INTEROP)/ms-swift/.installed: TOOL = ms-swift==4.6.0

$(INTEROP)/%/.installed: tests/dialects/tools/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q torch==2.13.0 -r $<
	$(@D)/bin/python -m pip install -q --no-deps $(TOOL)
	rm -f $(@D)/lib/python*/site-packages/torchaudio/lib/*.so
	touch $@

clean:
	rm -rf .venv dist build outputs mlruns mlflow.db

# torch first, at its exact version: a range would take the newest build with its CUDA packages.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@

chaos: .venv/.installed-test ## 200 kills at random points of sweeps (an hour)
	$(BIN)/python benchmarks/chaos.py

thorough: .venv/.installed-test ## more cases of what the tests show (three minutes)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m thorough

faults: .venv/.installed-test ## everything that can go wrong, the long way round (three hours)
	$(BIN)/python -m pytest -m faults
	$(BIN)/python benchmarks/fuzz.py
	$(BIN)/python benchmarks/full_disk.py
	$(BIN)/python benchmarks/outage.py

scale: .venv/.installed-test ## many workers, on Ray, SLURM's stand-ins and PostgreSQL (minutes)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -m scale tests/orchestration/executors

# On a bare image these use its own Python and packages, and beside them what gpu-wheels has fetched.
gpu: ## check and measure packed trials on this machine's GPU (nine minutes at most); OUT=FOLDER
	test ! -d .wheels || test -d .wheels/site || PYTHON=$(PYTHON) sh benchmarks/gpu/wheels.sh install
	PYTHONPATH=$(CURDIR)/.wheels/site $(PYTHON) benchmarks/gpu_check.py $(if $(OUT),--out $(OUT))

gpu-smoke: .venv/.installed-test ## the same with tiny shapes, on CPUs: does it run?
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gpu_check.py --smoke --out .tmp/gpu-smoke

gpu-wheels: ## fetch what a bare image with torch, transformers and peft lacks, for a machine without a network
	sh benchmarks/gpu/wheels.sh
