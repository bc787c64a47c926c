"""A whole search for the learning rate, from the command to the answer: `python benchmarks/whole_job.py`, half an hour.

The default sweep of the embedded model against `Trainer.hyperparameter_search` with 32 trials of Optuna's TPE and
median pruner, and against nine runs of Trainer one by one. The same model, rows, steps and evaluations; the rates are
from 1e-5 to 1e-1. Each run has a new process and a temporary folder, and its time includes imports. lrsweep's also
includes a second seed for the best rates, its report, MLflow and the loss before training, which the others do not
give. Further arms show what each part brings, and 16 trials of 40 steps compare the two engines.

Regret is how far the mean loss of three seeds at the chosen rate is above the lowest mean, as a share of the
improvement; it is measured first, at 17 rates. Writes `results/whole_job.json`.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import numpy as np
from common import RESULTS, about, save, table

TRIALS = 32
TPE, GRID = "Trainer, TPE and median pruner, 32 trials", "Trainer, nine rates one by one"
OURS = {
    "lrsweep": [],
    "lrsweep, one seed": ["search.replicates=1"],
    "lrsweep, one seed, all rates to the end": ["search.replicates=1", "search=grid"],
    "lrsweep, one seed, engine=trainer": ["search.replicates=1", "engine=trainer"],
}
SIXTEEN = ["search=grid", "search.replicates=1", "training.max_steps=40", "training.eval_every=10"]
SIXTEEN += ["space.optimizer.lr=[1e-5,3e-5,1e-4,3e-4,1e-3,3e-3,1e-2,3e-2]", "+space.optimizer.weight_decay=[0.0,0.1]"]
ENGINES = {
    "16 trials, packed": [*SIXTEEN, "engine=packed"],
    "16 trials, engine=trainer": [*SIXTEEN, "engine=trainer"],
}
LRS = np.logspace(-5, -1, 17)


def ours(overrides: list[str], seed: int, folder: str) -> tuple[float, int]:
    """Runs a sweep in the folder; returns the recommended rate and the number of optimizer steps."""
    command = [sys.executable, "-m", "lrsweep", "+sweep=lora_lr", f"training.seed={seed}", *overrides]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads((Path(folder) / "outputs/lora_lr/summary.json").read_text())
    return summary["best"]["values"]["optimizer.lr"], sum(trial["step"] for trial in summary["trials"])


def theirs(arm: str, seed: int, folder: str) -> tuple[float, int]:
    """The same for Trainer."""
    command = [sys.executable, "-W", "ignore", __file__, "--arm", arm, "--seeds", str(seed)]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = json.loads((Path(folder) / "found.json").read_text())
    return found["lr"], found["steps"]


def search(arm: str, seed: int) -> None:
    """Runs Trainer's search in this process, and writes what it found."""
    import optuna
    from sweep import hf_trainer

    from lrsweep.config.hydra_compose import sweep_config

    config = sweep_config(["+sweep=lora_lr", f"training.seed={seed}"])
    rates = list(config.space["optimizer"]["lr"])
    trainer = hf_trainer(config, seed)

    def space(trial: optuna.Trial) -> dict[str, float]:
        if arm == GRID:
            return {"learning_rate": trial.suggest_categorical("learning_rate", rates)}
        return {"learning_rate": trial.suggest_float("learning_rate", min(rates), max(rates), log=True)}

    storage = optuna.storages.InMemoryStorage()
    one_by_one = arm == GRID
    trainer.hyperparameter_search(
        backend="optuna",
        direction="minimize",
        n_trials=len(rates) if one_by_one else TRIALS,
        hp_space=space,
        study_name="benchmark",
        storage=storage,
        sampler=optuna.samplers.GridSampler({"learning_rate": rates})
        if one_by_one
        else optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.NopPruner() if one_by_one else optuna.pruners.MedianPruner(),
    )
    study = optuna.load_study(study_name="benchmark", storage=storage)
    steps = sum(trial.last_step or 0 for trial in study.trials)
    Path("found.json").write_text(json.dumps({"lr": study.best_params["learning_rate"], "steps": steps}))


def truth() -> dict[str, Any]:
    """The mean final losses over the rate, and the loss before training."""
    from tasks import Host

    from lrsweep.config.hydra_compose import sweep_config
    from lrsweep.config.schema import replace
    from lrsweep.training.engines.packed import PackedEngine

    config = sweep_config(["+sweep=lora_lr", "training.save_adapter=false", "training.checkpoint_seconds=null"])
    lrs = [float(f"{lr:.4g}") for lr in LRS]
    points = list(itertools.product(lrs, (10, 11, 12)))
    configs = [replace(config, {"optimizer.lr": lr, "training.seed": seed}) for lr, seed in points]
    with tempfile.TemporaryDirectory() as folder:
        host = Host(configs, Path(folder))
        PackedEngine("auto", rank=config.finetune.r).run(host)
    finals = np.array([host.evals[i][-1][1] if host.status[i] == "complete" else np.inf for i in range(len(points))])
    return {"lrs": lrs, "means": finals.reshape(len(lrs), 3).mean(1).tolist(), "base": host.evals[0][0][1]}


def regret(lr: float, known: dict[str, Any]) -> float:
    means = np.minimum(known["means"], known["base"])
    return float((np.interp(np.log10(lr), np.log10(known["lrs"]), means) - means.min()) / (known["base"] - means.min()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--few", type=int, default=1, help="seeds of the other arms")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "whole_job.json")
    arguments = parser.parse_args()
    if arguments.arm:
        search(arguments.arm, arguments.seeds)
        return
    known = truth()
    print(known, flush=True)
    runs: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        arms = ["lrsweep", TPE, *([GRID, *OURS, *ENGINES] if seed < arguments.few else [])]
        for arm in dict.fromkeys(arms):
            with tempfile.TemporaryDirectory() as folder:
                start = time.monotonic()
                overrides = (OURS | ENGINES).get(arm)
                lr, steps = theirs(arm, seed, folder) if overrides is None else ours(overrides, seed, folder)
                seconds = time.monotonic() - start
            lost = None if arm in ENGINES else round(regret(lr, known), 4)
            found = {"arm": arm, "seed": seed, "seconds": round(seconds, 1), "lr": lr, "steps": steps, "regret": lost}
            runs.append(found)
            print(found, flush=True)
            what = about("torch", "transformers", "peft", "optuna", "mlflow") | {"truth": known}
            save(arguments.out, what, runs=runs)
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in runs):
        own = [run for run in runs if run["arm"] == arm]
        medians = [statistics.median(run[key] for run in own) for key in ("seconds", "steps")]
        worst = "" if arm in ENGINES else max(run["regret"] for run in own)
        rows.append([arm, len(own), *medians, worst])
    print(table(["arm", "seeds", "seconds, median", "steps, median", "highest regret"], rows))


if __name__ == "__main__":
    main()
