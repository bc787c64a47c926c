"""Whole sweeps by the command line, with Optuna, on a model that is built here: packed trials against stock Trainer."""

import functools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import Qwen2Config

from gpu.models import random_model
from gpu.steps import Found, Step, arguments_of_child, run_steps
from lrsweep.embedded import BASE
from lrsweep.files.metrics_log import read_metrics

ROOT = Path(__file__).parents[2]
# Two rates of a model with random weights may differ by this much in bf16, each trained by the other engine.
GATE = 0.05


def build(folder: Path, smoke: bool) -> Found:
    """Writes a model of 0.5B's shape with random weights, with the embedded model's tokenizer."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    if not smoke:
        shape = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    config = Qwen2Config(vocab_size=2048, num_key_value_heads=2, tie_word_embeddings=True, **shape)
    model = random_model(config, torch.float32 if smoke else torch.bfloat16)
    model.save_pretrained(folder)
    for path in BASE.glob("*token*"):
        shutil.copy(path, folder)
    return {"parameters": sum(weight.numel() for weight in model.parameters()), "ok": None}


def sweep(engine: str, model: Path, smoke: bool) -> Found:
    """Runs the sweep with one engine."""
    folder = model.parent / engine
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    steps, trials = (2, 2) if smoke else (20, 4)
    command = [
        "+sweep=lora_lr",
        f"name={engine}",
        "search=random",
        f"search.n_trials={trials}",
        "search.replicates=1",
        "search.preflight=false",
        "pruner=none",
        "space.optimizer.lr={low: 1e-5, high: 1e-3, log: true}",
        "model=local",
        f"model.path={model}",
        f"engine={engine}",
        f"training.max_steps={steps}",
        f"training.eval_every={steps // 2}",
        "training.batch_size=1",
        "training.save_adapter=false",
        "data.max_eval_rows=16",
        "data.max_train_rows=256",
        "tracking=none",
        "executor.workers=1",
    ]
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "lrsweep", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout)
    losses = final_losses(folder, engine)
    found: Found = {"wall_seconds": round(time.monotonic() - begun, 1), "eval_losses": losses}
    found["ok"] = done.returncode == 0 and len(losses) == trials
    if not found["ok"]:
        lines = done.stdout.strip().splitlines() or ["no output"]
        found["failed"] = f"exit code {done.returncode}: {lines[-1][:200]}"
        found["reproduce"] = "python -m lrsweep " + " ".join(f"'{word}'" for word in command)
    return found


def final_losses(folder: Path, name: str) -> list[float]:
    """The last eval loss of each trial, by number."""
    trials = sorted((folder / "outputs" / name / "trials").glob("*"))
    curves = [[row["eval_loss"] for row in read_metrics(trial) if "eval_loss" in row] for trial in trials]
    return [curve[-1] for curve in curves if curve]


def compare(folder: Path) -> Found:
    """Whether both engines found the same losses for the same rates: a sampler's seed decides the rates."""
    packed, stock = (final_losses(folder / engine, engine) for engine in ("packed", "trainer"))
    if not packed or len(packed) != len(stock):
        return {"ok": False, "failed": "one of the sweeps is not complete"}
    worst = max(abs(a - b) for a, b in zip(packed, stock, strict=True))
    return {"worst": round(worst, 5), "gate": GATE, "ok": worst < GATE}


def main() -> None:
    arguments = arguments_of_child()
    folder = arguments.events.parent.resolve() / "sweep"
    model, smoke = folder / "model", arguments.smoke
    steps = [
        Step("build a model", 40, functools.partial(build, model, smoke)),
        Step("packed", 60, functools.partial(sweep, "packed", model, smoke)),
        Step("trainer", 90, functools.partial(sweep, "trainer", model, smoke)),
        Step("the same losses", 10, functools.partial(compare, folder)),
    ]
    run_steps(steps, arguments)
    shutil.rmtree(model, ignore_errors=True)


if __name__ == "__main__":
    main()
