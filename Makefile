# Two commands do all the set-up: `make sweep` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: sweep test lint types wheel base clean

sweep: .venv/.installed ## install if need be, then run the default sweep
	$(BIN)/python -m lrsweep +sweep=lora_lr

test: .venv/.installed-test ## install if need be, then run every test
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-test
	$(BIN)/mypy

wheel: .venv/.installed-test
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

base: .venv/.installed ## pretrain the embedded model anew (about five minutes on 2 cores)
	$(BIN)/python -m lrsweep.embedded.pretrain

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
