"""Compares a whole sweep with `Trainer.hyperparameter_search(backend="optuna")`: `python benchmarks/sweep.py`.

Both train the same 32 trials of the embedded model and task: 8 learning rates, 2 weight decays, 2 beta2; LoRA, 60 steps
of 8 rows, cosine with warm-up, evaluated on the same 128 rows after 20, 40 and 60 steps. Each run has a new process and
a temporary folder. Its time includes loading data and models, but not imports. Neither side saves adapters.

Part a: no pruning, time to finish all 32 trials. Its lines add one change after another to show where the gain comes
from: logits only at labels (in Trainer, too), lrsweep's packed engine with one slot, with all its slots, with MLflow.

Part parts: only the packed engine on the same trials, without workers, study and report: unchanged, with padded rows,
with torch's own matrix products, with both.

Part b: each seed gives a new order of trials (theirs by GridSampler's seed; ours by shuffling the axes and their
values, because a grid runs in the order in which it is written) and seeds the adapters and the order of rows. First the
full grid runs (packed, without pruning; `--part full` does only that; its time does not count). It determines, for both
sides, the true best trial and the trials within 1 % of it. Then both sides run with pruning: sync_halving here,
Optuna's MedianPruner with its defaults there. This measures the time until a trial within 1 % of the best is complete,
and whether the true best trial survived.
"""

import argparse
import contextlib
import datetime
import functools
import importlib
import itertools
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

# As `python -m lrsweep` sets them, on both sides; OMP_WAIT_POLICY is left as it is.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import optuna
import torch.nn.functional as F
from common import RESULTS, about, save, table
from transformers import PrinterCallback, Trainer, TrainingArguments

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig
from lrsweep.config.schema import replace as with_keys
from lrsweep.orchestration.run_sweep import run_sweep
from lrsweep.report.screen import Screen
from lrsweep.tracking import default_uri
from lrsweep.training.data.loading import collate
from lrsweep.training.engines import Measurement, Outcome, Stop, Trial, pack_loader
from lrsweep.training.engines.packed import PackedEngine
from lrsweep.training.inputs import inputs
from lrsweep.training.model import load_model, make_trainable
from lrsweep.training.packing import functions

LR, DECAY, BETAS = "optimizer.lr", "optimizer.weight_decay", "optimizer.betas"
AXES: dict[str, list[Any]] = {
    LR: [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    DECAY: [0.0, 0.1],
    BETAS: [[0.9, 0.999], [0.9, 0.95]],
}
SMOKE_AXES: dict[str, list[Any]] = {LR: [1e-4, 3e-3], DECAY: [0.0], BETAS: [[0.9, 0.999], [0.9, 0.95]]}
BASE = ["training.max_steps=60", "training.eval_every=20", "training.save_adapter=false"]
SMOKE_BASE = ["training.max_steps=6", "training.eval_every=2", "training.save_adapter=false", "data.max_eval_rows=16"]
CLOSE = 1.01
TARGET_EQUAL, TARGET_BEST = 3, 8
# PEFT still uses transformers' old name.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

STOCK, STOCK_LABELS = "HF search", "HF search, logits at labels"
PACKED_1, PACKED, MLFLOW = "lrsweep, packed, 1 slot", "lrsweep, packed", "lrsweep, packed, with MLflow"
ENGINE, PADDED, MATMUL, NEITHER = "engine", "engine, rows padded", "engine, F.linear", "engine, rows padded, F.linear"
# "lockstep" is the sync_halving pruner: the name in results files.
STOCK_PRUNED, PACKED_PRUNED = "HF search, median pruner", "lrsweep, packed, lockstep pruner"
OVERRIDES = {
    PACKED_1: ["engine=packed", "engine.slots=1", "tracking=none"],
    PACKED: ["engine=packed", "tracking=none"],
    MLFLOW: ["engine=packed", "tracking=mlflow"],
    PACKED_PRUNED: ["engine=packed", "tracking=none", "pruner=sync_halving"],
}

# A trial's place in the grid, and how it ended: status, eval loss, steps, seconds since the start.
Point = tuple[float, float, tuple[float, float]]
Ended = dict[str, Any]


# Both sides. A run returns {"seconds": ..., "trials": [Ended, ...]}.
Result = dict[str, Any]


def in_a_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Returns the function's result from a new process in a temporary working folder."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, context, os.chdir, (folder,)) as pool:
        return pool.submit(function, *arguments).result()


def trial_config(seed: int, smoke: bool, axes: Mapping[str, Sequence[Any]], *overrides: str) -> SweepConfig:
    """Returns the config of the sweep over these axes."""
    space = [f"space.{key}={json.dumps(values)}" for key, values in axes.items()]
    base = SMOKE_BASE if smoke else BASE
    return sweep_config([*base, "search=grid", f"training.seed={seed}", "name=benchmark", *space, *overrides])


def run_lrsweep(name: str, seed: int, smoke: bool) -> Result:
    """Runs our sweep: `python -m lrsweep`, except for the terminal.

    MLflow's database is created first and timed separately: it is created once per working folder, not once per sweep.
    """
    config = trial_config(seed, smoke, shuffled_axes(seed, smoke), *OVERRIDES[name])
    notes = Notes()
    # Modules that lrsweep imports only when it needs them.
    for module in ("lrsweep.training.engines.factory", "matplotlib.pyplot", "mlflow"):
        importlib.import_module(module)
    start = time.perf_counter()
    if name == MLFLOW:
        importlib.import_module("mlflow").MlflowClient(default_uri(Path.cwd())).search_experiments()
    database = time.perf_counter() - start
    start = time.perf_counter()
    run_sweep(config, notes)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "database_seconds": database, "trials": notes.ended(start)}


def run_engine(name: str, seed: int, smoke: bool) -> Result:
    """Runs only the packed engine, with the trials handed to it."""
    axes = SMOKE_AXES if smoke else AXES
    config = trial_config(seed, smoke, axes, "engine=packed", "tracking=none")
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    host = ListHost([with_keys(config, point) for point in points])
    inputs(config.model, config.data)
    with contextlib.ExitStack() as changes:
        if name in (PADDED, NEITHER):
            changes.enter_context(mock.patch.object(pack_loader, "lay_end_to_end", return_value=0))
        if name in (MATMUL, NEITHER):
            changes.enter_context(mock.patch.object(functions, "_ONEDNN", False))
        start = time.perf_counter()
        PackedEngine("auto", config.finetune.r).run(host)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "losses": host.losses}


class ListHost:
    """A host that hands out a list of trials and keeps their last eval losses."""

    def __init__(self, configs: Sequence[SweepConfig]) -> None:
        self._waiting = [Trial(i, config, Path(str(i))) for i, config in enumerate(configs)]
        self.losses = [float("nan")] * len(configs)

    def next_trial(self) -> Trial | None:
        return self._waiting.pop(0) if self._waiting else None

    def report(self, measurements: Sequence[Measurement]) -> Mapping[int, Stop]:
        for measurement in measurements:
            self.losses[measurement.number] = measurement.metrics.get("eval_loss", self.losses[measurement.number])
        return {}

    def finish(self, outcome: Outcome) -> None:
        assert outcome.status == "complete", outcome


class Notes(Screen):
    """A screen that records when and how each trial ended."""

    def __init__(self) -> None:
        self._trials: dict[int, Ended] = {}

    def note(self, text: str) -> None: ...

    def trial_started(self, number: int, values: Mapping[str, Any], config: SweepConfig) -> None:
        optimizer = config.optimizer
        self._trials[number] = {"point": (optimizer.lr, optimizer.weight_decay, tuple(optimizer.betas)), "step": 0}

    def running(self, trials: int, done: int, steps: int) -> Any:
        return contextlib.nullcontext()

    def measured(self, measurement: Measurement) -> None:
        trial = self._trials[measurement.number]
        trial["step"] = measurement.step
        if "eval_loss" in measurement.metrics:
            trial["eval_loss"] = measurement.metrics["eval_loss"]

    def trial_finished(self, number: int, status: str, reason: str) -> None:
        self._trials[number] |= {"status": status, "at": time.perf_counter()}

    def trial_interrupted(self, number: int) -> None: ...

    def waited(self) -> None: ...

    def ended(self, start: float) -> list[Ended]:
        """Returns all trials; `start` is the time of the sweep's start."""
        return [trial | {"at": trial["at"] - start} for trial in self._trials.values()]


def shuffled_axes(seed: int, smoke: bool) -> dict[str, list[Any]]:
    """Shuffles the axes and their values by the seed: lrsweep runs a grid in the order in which it is written."""
    shuffle = random.Random(seed)
    axes = SMOKE_AXES if smoke else AXES
    return {key: shuffle.sample(axes[key], len(axes[key])) for key in shuffle.sample(list(axes), len(axes))}


def run_hf(name: str, seed: int, smoke: bool) -> Result:
    """Runs their sweep: one Trainer, and a study with a GridSampler, which shuffles by its seed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes = SMOKE_AXES if smoke else AXES
    config = trial_config(seed, smoke, axes)
    start, started = time.perf_counter(), datetime.datetime.now()
    trainer = hf_trainer(config, seed, LabelLogitsTrainer if name == STOCK_LABELS else Trainer)
    # Trainer's names; beta1 is always the same.
    values = {
        "learning_rate": axes[LR],
        "weight_decay": axes[DECAY],
        "adam_beta2": [beta2 for _, beta2 in axes[BETAS]],
    }
    storage = optuna.storages.InMemoryStorage()
    trainer.hyperparameter_search(
        backend="optuna",
        direction="minimize",
        n_trials=len(list(itertools.product(*values.values()))),
        hp_space=lambda trial: {key: trial.suggest_categorical(key, choices) for key, choices in values.items()},
        study_name="benchmark",
        storage=storage,
        sampler=optuna.samplers.GridSampler(values, seed=seed),
        pruner=optuna.pruners.MedianPruner() if name == STOCK_PRUNED else optuna.pruners.NopPruner(),
    )
    seconds = time.perf_counter() - start
    study = optuna.load_study(study_name="benchmark", storage=storage)
    return {"seconds": seconds, "trials": [hf_trial(trial, started) for trial in study.trials]}


def hf_trainer(config: SweepConfig, seed: int, kind: type[Trainer] = Trainer) -> Trainer:
    """A Trainer that trains what the config says."""
    tokenizer, data = inputs(config.model, config.data)
    training = config.training
    arguments = TrainingArguments(
        output_dir="hf",
        max_steps=training.max_steps,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.eval_batch_size,
        max_grad_norm=training.max_grad_norm,
        lr_scheduler_type=config.scheduler.name,
        warmup_steps=config.scheduler.warmup(training.max_steps),
        seed=seed,
        eval_strategy="steps",
        eval_steps=training.eval_every,
        save_strategy="no",
        logging_steps=10**9,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = kind(
        model_init=lambda: make_trainable(load_model(config.model, config.finetune), config.finetune, seed),
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        data_collator=functools.partial(collate, pad_token_id=tokenizer.pad_token_id),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def hf_trial(trial: optuna.trial.FrozenTrial, started: datetime.datetime) -> Ended:
    """Returns how one of Trainer's trials ended; `started` is the time of the sweep's start."""
    params = trial.params
    assert trial.last_step is not None
    assert trial.datetime_complete is not None
    return {
        "point": (params["learning_rate"], params["weight_decay"], (0.9, params["adam_beta2"])),
        "status": trial.state.name.lower(),
        "eval_loss": trial.intermediate_values[trial.last_step],
        "step": trial.last_step,
        "at": (trial.datetime_complete - started).total_seconds(),
    }


class LabelLogitsTrainer(Trainer):  # type: ignore[misc]
    """Stock Trainer, but it computes logits only at positions that predict a label."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        causal = model.get_base_model()
        labels = inputs.pop("labels")[:, 1:]
        wanted = labels != -100
        hidden = causal.get_decoder()(**inputs, use_cache=False).last_hidden_state[:, :-1]
        loss = F.cross_entropy(causal.lm_head(hidden[wanted]), labels[wanted], reduction="sum")
        loss = loss / (wanted.sum() if num_items_in_batch is None else num_items_in_batch)
        return (loss, {"loss": loss}) if return_outputs else loss


# The parts


def run(name: str, seed: int, smoke: bool) -> Result:
    """Runs an arm in a new process."""
    function = run_hf if name.startswith("HF") else run_engine if name.startswith("engine") else run_lrsweep
    result = in_a_process(function, name, seed, smoke)
    print(f"  {name}, seed {seed}: {result['seconds']:.1f} s", flush=True)
    return result


def part_a(repeats: int, smoke: bool) -> list[dict[str, Any]]:
    """Measures the time to finish all trials without pruning; returns an entry per arm."""
    print("a: all trials, no pruning", flush=True)
    names = [STOCK, STOCK_LABELS, PACKED_1, PACKED, MLFLOW]
    shuffle = random.Random(0)
    results: dict[str, list[Result]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in shuffle.sample(names, len(names)):
            results[name].append(run(name, 0, smoke))
    seconds = {name: statistics.median(result["seconds"] for result in results[name]) for name in names}
    lows = {name: min(result["seconds"] for result in results[name]) for name in names}
    reference = losses(results[PACKED][0])
    rows, entries = [], []
    for name in names:
        found = losses(results[name][0])
        best = min(found, key=lambda point: found[point])
        apart = max(abs(found[point] - reference[point]) for point in found.keys() & reference.keys())
        statuses = sorted({trial["status"] for trial in results[name][0]["trials"]})
        rows.append(
            [name, len(found), f"{lows[name]:.1f}", f"{lows[STOCK] / lows[name]:.2f}x", f"{best[0]:g}", f"{apart:.1e}"]
        )
        entries.append(
            {
                "arm": name,
                "trials": len(found),
                "statuses": statuses,
                "seconds_min": round(lows[name], 2),
                "seconds_median": round(seconds[name], 2),
                "seconds_all": [round(result["seconds"], 2) for result in results[name]],
                "faster_than_hf_search": round(lows[STOCK] / lows[name], 3),
                "best": best,
                "best_eval_loss": found[best],
                "eval_losses_apart": apart,
                "database_seconds": [round(result.get("database_seconds", 0.0), 2) for result in results[name]],
            }
        )
    print(
        table(["a: no pruning", "trials", "seconds", "faster than HF search", "best lr", "eval losses differ by"], rows)
    )
    for what, before, after in (
        ("logits only at labels, in Trainer", STOCK, STOCK_LABELS),
        ("the packed engine with one trial at a time, and the base loaded once", STOCK_LABELS, PACKED_1),
        ("packing", PACKED_1, PACKED),
        ("MLflow", PACKED, MLFLOW),
    ):
        print(f"{what}: {lows[before] / lows[after]:.2f}x ({before} -> {after})")
    print(f"target, {TARGET_EQUAL}x at equal trials: {_verdict(lows[STOCK] / lows[PACKED], TARGET_EQUAL)}")
    database = min(result["database_seconds"] for result in results[MLFLOW])
    print(f"Not included: creating MLflow's database, once per working folder, took {database:.1f} s.")
    print("The eval losses differ because HF's is a mean of batch means, and lrsweep's is a mean over tokens.\n")
    return entries


def part_parts(repeats: int, smoke: bool) -> list[dict[str, Any]]:
    """Measures the engine alone, with and without its two changes to a pass; returns an entry per arm."""
    print("parts: only the engine", flush=True)
    names = [ENGINE, PADDED, MATMUL, NEITHER]
    shuffle = random.Random(0)
    results: dict[str, list[Result]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in shuffle.sample(names, len(names)):
            results[name].append(run(name, 0, smoke))
    entries = []
    for name in names:
        seconds = [round(result["seconds"], 2) for result in results[name]]
        pairs = zip(results[name][0]["losses"], results[ENGINE][0]["losses"], strict=True)
        apart = statistics.median(abs(mine - theirs) for mine, theirs in pairs)
        entries.append(
            {
                "arm": name,
                "seconds_min": min(seconds),
                "seconds_median": statistics.median(seconds),
                "seconds_all": seconds,
                "median_eval_losses_apart": apart,
            }
        )
    least = entries[0]["seconds_min"]
    rows = [
        [
            e["arm"],
            f"{e['seconds_min']:.1f}",
            f"{e['seconds_min'] / least:.2f}x",
            f"{e['median_eval_losses_apart']:.0e}",
        ]
        for e in entries
    ]
    print(table(["parts: no pruning", "seconds", "the engine is faster by", "eval losses differ by (median)"], rows))
    return entries


def losses(result: Result) -> dict[Point, float]:
    """Returns the complete trials' eval losses."""
    return {trial["point"]: trial["eval_loss"] for trial in result["trials"] if trial["status"] == "complete"}


def full_grids(seeds: int, smoke: bool, file: Path) -> dict[int, dict[Point, float]]:
    """Returns the eval losses of every seed's full grid; runs the grids that `file` lacks, and adds them to it."""
    entries = json.loads(file.read_text())["grids"] if file.exists() else []
    for seed in range(seeds):
        if not any(entry["seed"] == seed for entry in entries):
            found = losses(run(PACKED, seed, smoke))
            entries.append({"seed": seed, "losses": [[*point, loss] for point, loss in found.items()]})
            save(file, about("torch", "transformers", "peft"), grids=entries)
    return {
        entry["seed"]: {(lr, decay, tuple(betas)): loss for lr, decay, betas, loss in entry["losses"]}
        for entry in entries
    }


def part_b(
    seeds: int, smoke: bool, grids: Mapping[int, Mapping[Point, float]], keep: Callable[[list[dict[str, Any]]], None]
) -> None:
    """Measures the time to a complete trial within 1 % of the best, and whether the best survived.

    Args:
        seeds: Number of seeds.
        smoke: As a quick test.
        grids: The eval losses of the full grid, by seed.
        keep: Gets the entries so far after each seed.
    """
    print("b: with pruning", flush=True)
    entries = []
    for seed in range(seeds):
        names = [PACKED_PRUNED, STOCK_PRUNED]
        results = {name: run(name, seed, smoke) for name in random.Random(seed).sample(names, len(names))}
        full = grids[seed]
        best = min(full, key=lambda point: full[point])
        close = {point for point, loss in full.items() if loss <= CLOSE * full[best]}
        for name in names:
            trials = results[name]["trials"]
            complete = [trial for trial in trials if trial["status"] == "complete"]
            times = [trial["at"] for trial in complete if trial["point"] in close]
            entries.append(
                {
                    "seed": seed,
                    "arm": name,
                    "seconds": round(results[name]["seconds"], 2),
                    "seconds_to_within_1_percent": round(min(times), 2) if times else None,
                    "best_survived": any(trial["point"] == best for trial in complete),
                    "complete": len(complete),
                    "within_1_percent": len(close),
                    "best": best,
                    "best_eval_loss": full[best],
                    "trial_steps": sum(trial["step"] for trial in trials),
                }
            )
        keep(entries)
    of = {name: [entry for entry in entries if entry["arm"] == name] for name in (STOCK_PRUNED, PACKED_PRUNED)}
    steps = seeds * len(next(iter(grids.values()))) * (6 if smoke else 60)
    rows = []
    for name, lines in of.items():
        to_best = [entry["seconds_to_within_1_percent"] for entry in lines]
        rows.append(
            [
                name,
                _spread(to_best),
                _spread([entry["seconds"] for entry in lines]),
                f"{sum(entry['best_survived'] for entry in lines)} of {len(lines)}",
                f"{sum(e['trial_steps'] for e in lines) / steps:.0%}",
            ]
        )
    print(table([f"b: {seeds} seeds", "s to within 1 %", "s in total", "true best survived", "trial-steps run"], rows))
    for key, what in (("seconds_to_within_1_percent", "to within 1 % of the best"), ("seconds", "to the end")):
        pairs = zip(of[STOCK_PRUNED], of[PACKED_PRUNED], strict=True)
        ratios = [theirs[key] / ours[key] for theirs, ours in pairs if theirs[key] and ours[key]]
        spread = f"{_spread(ratios)} (min / median / max over seeds)"
        print(f"{what}, {PACKED_PRUNED} is faster than {STOCK_PRUNED} by {spread}")
        if key == "seconds_to_within_1_percent" and ratios:
            print(f"target, {TARGET_BEST}x to the best: {_verdict(statistics.median(ratios), TARGET_BEST)}")


def _verdict(ratio: float, aim: float) -> str:
    return f"{'met' if ratio >= aim else 'not met'} ({ratio:.2f}x)"


def _spread(values: Sequence[float | None]) -> str:
    found = sorted(value for value in values if value is not None)
    if not found:
        return "never"
    missing = f" ({len(values) - len(found)} never)" if len(found) < len(values) else ""
    return f"{found[0]:.1f} / {statistics.median(found):.1f} / {found[-1]:.1f}{missing}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=("a", "parts", "full", "b"), help="default: all")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds in part b")
    parser.add_argument("--repeats", type=int, default=1, help="repeats of the parts a and parts")
    parser.add_argument("--smoke", action="store_true", help="4 trials of 6 steps, as a quick test")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="where sweep_*.json go")
    arguments = parser.parse_args()
    known = about("torch", "transformers", "peft", "accelerate", "optuna", "mlflow")
    print(f"{known['hardware']}, {known['threads']} threads")
    if arguments.part in (None, "a"):
        save(arguments.out / "sweep_a.json", known, arms=part_a(arguments.repeats, arguments.smoke))
    if arguments.part in (None, "parts"):
        save(arguments.out / "sweep_parts.json", known, arms=part_parts(arguments.repeats, arguments.smoke))
    if arguments.part in (None, "full", "b"):
        grids = full_grids(arguments.seeds, arguments.smoke, arguments.out / "sweep_full.json")
    if arguments.part in (None, "b"):
        part_b(
            arguments.seeds,
            arguments.smoke,
            grids,
            lambda entries: save(arguments.out / "sweep_b.json", known, runs=entries),
        )


if __name__ == "__main__":
    main()
