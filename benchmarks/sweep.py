"""A whole sweep, lrsweep's against `Trainer.hyperparameter_search(backend="optuna")`: `python benchmarks/sweep.py`.

Both train the same 32 trials of the embedded model and task: 8 learning rates, 2 weight decays, 2 beta2; LoRA, 60 steps
of 8 rows, cosine with warm-up, evaluated on the same 128 rows after 20, 40 and 60 steps. Each run has a fresh process
and a temporary folder; its time is from the call to the return, with data and models loaded in it and imports not. No
adapters are saved, on either side.

Part a: no pruning, time to finish all 32. Its lines take the gain apart, one change after another: logits only at
labels (given to Trainer too), lrsweep's packed engine with one slot, with all its slots, with MLflow.

Part parts: the packed engine alone on the same trials, without workers, study and report: as it is, with rows padded, with
products as torch takes them, with neither.

Part b: each seed orders the trials anew (theirs by GridSampler's seed; ours by shuffling the axes and the values of
each, as a grid is run in the order it is written) and seeds the adapters and the order of rows. The grid is run in full
(packed, without pruning; `--part full` does only that, and its time does not count), which says what is best and what is
within 1 % of it; then with pruning on both sides: lockstep, and Optuna's MedianPruner with its defaults. Measured: the
time until a trial within 1 % of the full grid's
best is complete, and whether the true best survived. Which trials are within 1 % is looked up in the full grid, for
both sides alike.
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

# As `python -m lrsweep` sets them, for both sides alike; threads wait as torch has them wait.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import optuna
import torch.nn.functional as F
from common import RESULTS, about, save, table
from transformers import PrinterCallback, Trainer, TrainingArguments

import lrsweep.orchestration.controller
import lrsweep.training.engines.pack_loader
import lrsweep.training.packing.functions
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig
from lrsweep.config.schema import replace as with_keys
from lrsweep.report.screen import Screen
from lrsweep.tracking import default_uri
from lrsweep.training.data.loading import collate
from lrsweep.training.engines import Measurement, Outcome, Stop, Trial
from lrsweep.training.engines.packed import PackedEngine
from lrsweep.training.inputs import inputs
from lrsweep.training.model import load_model, make_trainable

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
AIM_EQUAL, AIM_BEST = 3, 8
# PEFT asks transformers under an old name.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

STOCK, STOCK_LABELS = "HF search", "HF search, logits at labels"
PACKED_1, PACKED, MLFLOW = "lrsweep, packed, 1 slot", "lrsweep, packed", "lrsweep, packed, with MLflow"
ENGINE, PADDED, MATMUL, NEITHER = "engine", "engine, rows padded", "engine, F.linear", "engine, rows padded, F.linear"
STOCK_PRUNED, PACKED_PRUNED = "HF search, median pruner", "lrsweep, packed, lockstep pruner"
OVERRIDES = {
    PACKED_1: ["engine=packed", "engine.slots=1", "tracking=none"],
    PACKED: ["engine=packed", "tracking=none"],
    MLFLOW: ["engine=packed", "tracking=mlflow"],
    PACKED_PRUNED: ["engine=packed", "tracking=none", "pruner=lockstep"],
}

# A trial's place in the grid, and how it ended: status, eval loss, steps, seconds since the start.
Point = tuple[float, float, tuple[float, float]]
Ended = dict[str, Any]


# Both sides. A run returns {"seconds": ..., "trials": [Ended, ...]}.
Result = dict[str, Any]


def in_a_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """The function's result, from a fresh process in a temporary working folder."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, context, os.chdir, (folder,)) as pool:
        return pool.submit(function, *arguments).result()


def trial_config(seed: int, smoke: bool, axes: Mapping[str, Sequence[Any]], *overrides: str) -> SweepConfig:
    space = [f"space.{key}={json.dumps(values)}" for key, values in axes.items()]
    base = SMOKE_BASE if smoke else BASE
    return sweep_config([*base, "search=grid", f"training.seed={seed}", "name=benchmark", *space, *overrides])


def run_lrsweep(name: str, seed: int, smoke: bool) -> Result:
    """Ours: `python -m lrsweep`, but for the terminal.

    MLflow's database is made first, and timed by itself: it is made once a working folder, not once a sweep.
    """
    config = trial_config(seed, smoke, shuffled_axes(seed, smoke), *OVERRIDES[name])
    notes = Notes()
    # What lrsweep imports when it comes to it.
    for module in ("lrsweep.training.engines.factory", "matplotlib.pyplot", "mlflow"):
        importlib.import_module(module)
    start = time.perf_counter()
    if name == MLFLOW:
        importlib.import_module("mlflow").MlflowClient(default_uri(Path.cwd())).search_experiments()
    database = time.perf_counter() - start
    start = time.perf_counter()
    lrsweep.orchestration.controller.run(config, notes)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "database_seconds": database, "trials": notes.ended(start)}


def run_engine(name: str, seed: int, smoke: bool) -> Result:
    """The packed engine alone, with the trials handed to it."""
    if name in (PADDED, NEITHER):
        lrsweep.training.engines.pack_loader.lay_end_to_end = lambda *_: 0
    if name in (MATMUL, NEITHER):
        lrsweep.training.packing.functions._ONEDNN = False
    axes = SMOKE_AXES if smoke else AXES
    config = trial_config(seed, smoke, axes, "engine=packed", "tracking=none")
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    host = Handing([with_keys(config, point) for point in points])
    inputs(config.model, config.data)
    start = time.perf_counter()
    PackedEngine("auto", config.finetune.r).run(host)
    return {"seconds": time.perf_counter() - start, "losses": host.losses}


class Handing:
    """A host that hands trials out and keeps their last eval losses."""

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
    """A screen that notes when each trial ended, and with what."""

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

    def ended(self, start: float) -> list[Ended]:
        return [trial | {"at": trial["at"] - start} for trial in self._trials.values()]


def shuffled_axes(seed: int, smoke: bool) -> dict[str, list[Any]]:
    """The axes and the values of each in an order of the seed's: ours runs a grid in the order it is written."""
    shuffle = random.Random(seed)
    axes = SMOKE_AXES if smoke else AXES
    return {key: shuffle.sample(axes[key], len(axes[key])) for key in shuffle.sample(list(axes), len(axes))}


def run_hf(name: str, seed: int, smoke: bool) -> Result:
    """Theirs: one Trainer, a study over a GridSampler, which shuffles by its seed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes = SMOKE_AXES if smoke else AXES
    config = trial_config(seed, smoke, axes)
    start, started = time.perf_counter(), datetime.datetime.now()
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
    kind = LabelLogitsTrainer if name == STOCK_LABELS else Trainer
    trainer = kind(
        model_init=lambda: make_trainable(load_model(config.model, config.finetune), config.finetune, seed),
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        data_collator=functools.partial(collate, pad_token_id=tokenizer.pad_token_id),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    # Under Trainer's names; beta1 is the same throughout.
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
    trials = [
        {
            "point": (trial.params["learning_rate"], trial.params["weight_decay"], (0.9, trial.params["adam_beta2"])),
            "status": trial.state.name.lower(),
            "eval_loss": trial.intermediate_values[trial.last_step],
            "step": trial.last_step,
            "at": (trial.datetime_complete - started).total_seconds(),
        }
        for trial in study.trials
    ]
    return {"seconds": seconds, "trials": trials}


class LabelLogitsTrainer(Trainer):
    """Stock, but the output layer sees only the places that a label is predicted from."""

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
    function = run_hf if name.startswith("HF") else run_engine if name.startswith("engine") else run_lrsweep
    result = in_a_process(function, name, seed, smoke)
    print(f"  {name}, seed {seed}: {result['seconds']:.1f} s", flush=True)
    return result


def part_a(repeats: int, smoke: bool) -> list[dict[str, Any]]:
    """Time to finish all trials, without pruning, by arm."""
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
    print(table(["a: no pruning", "trials", "seconds", "faster than HF search", "best lr", "eval losses apart"], rows))
    for what, before, after in (
        ("logits only at labels, in Trainer", STOCK, STOCK_LABELS),
        ("the packed engine's loop and its base loaded once, one trial at a time", STOCK_LABELS, PACKED_1),
        ("packing", PACKED_1, PACKED),
        ("MLflow", PACKED, MLFLOW),
    ):
        print(f"{what}: {lows[before] / lows[after]:.2f}x ({before} -> {after})")
    print(f"aim, {AIM_EQUAL}x at equal trials: {_verdict(lows[STOCK] / lows[PACKED], AIM_EQUAL)}")
    database = min(result["database_seconds"] for result in results[MLFLOW])
    print(f"Not in these: MLflow's database, made once a working folder in {database:.1f} s.")
    print(
        "HF's eval loss is a mean of batch means, lrsweep's a mean over tokens: so far apart are their eval losses.\n"
    )
    return entries


def part_parts(repeats: int, smoke: bool) -> list[dict[str, Any]]:
    """The engine alone, with and without what it does to a pass."""
    print("parts: the engine alone", flush=True)
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
    print(table(["parts: no pruning", "seconds", "the engine is faster by", "eval losses apart (median)"], rows))
    return entries


def losses(result: Result) -> dict[Point, float]:
    """The complete trials' eval losses."""
    return {trial["point"]: trial["eval_loss"] for trial in result["trials"] if trial["status"] == "complete"}


def full_grids(seeds: int, smoke: bool, file: Path) -> dict[int, dict[Point, float]]:
    """The eval losses of every seed's full grid: those in `file`, and what that lacks, which is added to it."""
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
    """Time to a complete trial within 1 % of the best, and whether the best survived; `keep` gets the entries."""
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
    print(table([f"b: {seeds} seeds", "s to within 1 %", "s in all", "true best survived", "trial-steps run"], rows))
    for key, what in (("seconds_to_within_1_percent", "to within 1 % of the best"), ("seconds", "to the end")):
        pairs = zip(of[STOCK_PRUNED], of[PACKED_PRUNED], strict=True)
        ratios = [theirs[key] / ours[key] for theirs, ours in pairs if theirs[key] and ours[key]]
        print(
            f"{what}, {PACKED_PRUNED} is faster than {STOCK_PRUNED} by (min / median / max over seeds): {_spread(ratios)}"
        )
        if key == "seconds_to_within_1_percent" and ratios:
            print(f"aim, {AIM_BEST}x to the best: {_verdict(statistics.median(ratios), AIM_BEST)}")


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
    parser.add_argument("--seeds", type=int, default=5, help="of part b")
    parser.add_argument("--repeats", type=int, default=1, help="of the parts a and parts")
    parser.add_argument("--smoke", action="store_true", help="4 trials of 6 steps: does it run?")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="for sweep_*.json")
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
