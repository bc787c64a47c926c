"""Makes loss curves with known labels from real runs: `python benchmarks/corpus.py`, about 20 minutes on one core.

Trains a few hundred short runs with the packed engine (`SETTINGS`: models, data, optimizers, schedules, batches and
lengths, each at many learning rates), labels them (`labels.py` defines the labels) and writes
`benchmarks/corpus/curves.jsonl.gz`, one line per curve.

A label is derived from information that the diagnosis does not see: the treatment of the run (its learning rate
relative to the best one of the same setting, added decay, broken training), and a probe: the loss of the same held-out
rows at sixteen evenly spaced steps, of which the log shows some or none. Runs that fit no definition clearly get no
label.

`--runs DIR` keeps the trained runs, one file per setting, so that an interrupted run can be resumed. Everything is
seeded, and a repetition differs only by rounding (which matters where training is chaotic). The texts are the standard
library of the running Python, so another Python version gives slightly different curves.
"""

import argparse
import gzip
import hashlib
import itertools
import json
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from labels import label_group
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    get_cosine_schedule_with_warmup,
)

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig, replace
from lrsweep.embedded import BASE, corpus
from lrsweep.training.engines import Measurement, Outcome, Stop, Trial
from lrsweep.training.engines.packed import PackedEngine

CORPUS = Path(__file__).parent / "corpus" / "curves.jsonl.gz"
PROBES, PROBE_ROWS = 16, 40  # evaluations per run, and eval rows

# Architecture, width, layers, heads, and steps of pretraining on source code (0: random weights).
MODELS: dict[str, tuple[str, int, int, int, int]] = {
    "llama": ("llama", 64, 2, 2, 200),
    "qwen2": ("qwen2", 48, 3, 3, 200),
    "gpt2": ("gpt2", 64, 2, 4, 200),
    "new_llama": ("llama", 32, 2, 2, 0),
    "new_qwen2": ("qwen2", 64, 2, 4, 0),
    "new_gpt2": ("gpt2", 48, 3, 3, 0),
    "new_wide": ("llama", 96, 1, 4, 0),
    "dead": ("llama", 64, 2, 2, 0),
}


@dataclass(frozen=True)
class Setting:
    """Runs that differ only in learning rate and, with `decays`, in weight decay.

    Attributes:
        name: Its name, and the group of its runs in the corpus.
        kind: `plain`; rates `near` each other; `explosive` rates; `tiny` data, seen many times; `decay`; or one of
            `labels.BROKEN`.
        model: A key of MODELS, or `base` for the embedded model.
        mode: As in finetune.mode.
        lrs: Learning rates, separated by spaces.
        steps: Optimizer steps of a run.
        batch: Rows of a step.
        rows: Training rows.
        task: `docstrings` (the embedded task) or `code`.
        optimizer: As in optimizer.
        clip: As in training.max_grad_norm.
        schedule: As in scheduler.name.
        warmup: As in scheduler.warmup_ratio.
        alpha: As in finetune.alpha.
        eps: As in optimizer.eps.
        decays: `LR: DECAY DECAY; ...`, runs in addition to those without decay.
        every: Losses are logged as means over this many steps, as transformers' Trainer does.
        evals: Every n-th probe, counted from the last, is logged as an evaluation; 0 logs none.
        evals_at_start: Whether the probe at step 0 may be logged.
        shows: The other metrics that are logged.
        seed: As in training.seed.
    """

    name: str
    kind: str
    model: str
    mode: str
    lrs: str
    steps: int
    batch: int
    rows: int = 2400
    task: str = "docstrings"
    optimizer: str = "adamw"
    clip: float = 1.0
    schedule: str = "cosine"
    warmup: float = 0.1
    alpha: float = 16.0
    eps: float = 1e-8
    decays: str = ""
    every: int = 1
    evals: int = 2
    evals_at_start: bool = True
    shows: tuple[str, ...] = ("learning_rate", "grad_norm")
    seed: int = 0

    def runs(self) -> list[tuple[float, float]]:
        """Returns (learning rate, weight decay) of each run."""
        decayed = (part.split(":") for part in self.decays.split(";") if part)
        return [(float(lr), 0.0) for lr in self.lrs.split()] + [
            (float(lr), float(decay)) for lr, decays in decayed for decay in decays.split()
        ]


LORA = "1e-6 1e-4 3e-4 1e-3 3e-3 1e-2 3e-2 1e-1"
LORA_HIGH = "1e-5 3e-4 1e-3 3e-3 1e-2 3e-2 1e-1 1"
FULL = "1e-6 1e-4 3e-4 1e-3 3e-3 1e-2 3e-2 1e-1"
NEW = "1e-5 3e-4 1e-3 3e-3 1e-2 3e-2 1e-1 1"
SGD = "1e-4 1e-3 1e-2 1e-1 3e-1 1 10 100"
NEAR_LORA = "3e-4 1e-3 3e-3 6e-3 1e-2 2e-2 4e-2 8e-2"
NEAR_NEW = "1e-4 1e-3 3e-3 1e-2 2e-2 3e-2 5e-2 1e-1"
NO_NORMS, NO_LR = ("learning_rate",), ("grad_norm",)

SETTINGS = [
    # Plain fine-tuning.
    Setting("base_lora", "plain", "base", "lora", LORA, 40, 4),
    Setting("base_full", "plain", "base", "full", FULL, 30, 4, evals=4, shows=NO_NORMS),
    Setting("llama_lora_16", "plain", "llama", "lora", LORA, 40, 16, evals=0),
    Setting("llama_lora_linear", "plain", "llama", "lora", LORA_HIGH, 120, 4, schedule="linear", every=10, evals=4),
    Setting("llama_full", "plain", "llama", "full", FULL, 60, 8, schedule="linear", evals=0, shows=NO_NORMS),
    Setting("llama_sgd", "plain", "llama", "full", SGD, 80, 4, optimizer="sgd", evals=4),
    Setting("llama_short", "plain", "llama", "lora", LORA, 20, 8, evals=4),
    Setting("llama_alpha", "plain", "llama", "lora", "1e-6 1e-5 1e-4 3e-4 1e-3 3e-3 1e-2", 60, 4, alpha=256.0, evals=0),
    Setting("qwen2_lora", "plain", "qwen2", "lora", LORA, 80, 4, schedule="constant_with_warmup", every=5),
    Setting("qwen2_full", "plain", "qwen2", "full", FULL, 30, 8, warmup=0, evals=0),
    Setting("qwen2_freeze", "plain", "qwen2", "freeze", FULL, 100, 2, every=10, evals=4, evals_at_start=False),
    Setting("qwen2_sgd", "plain", "qwen2", "lora", SGD, 60, 4, optimizer="sgd", schedule="constant", warmup=0, clip=0),
    Setting("gpt2_lora", "plain", "gpt2", "lora", LORA_HIGH, 60, 8, evals=4, shows=()),
    Setting("gpt2_full", "plain", "gpt2", "full", FULL, 80, 4, every=10, evals=2, shows=NO_NORMS),
    Setting("gpt2_freeze", "plain", "gpt2", "freeze", FULL, 50, 4, schedule="linear"),
    Setting("gpt2_short", "plain", "gpt2", "full", FULL, 25, 8, schedule="constant", warmup=0, evals=4),
    # From random weights.
    Setting("new_llama", "plain", "new_llama", "full", NEW, 300, 2, task="code", every=10, evals=2),
    Setting("new_llama_sgd", "plain", "new_llama", "full", SGD, 100, 4, task="code", optimizer="sgd", clip=0, every=5),
    Setting("new_qwen2", "plain", "new_qwen2", "full", NEW, 80, 4, task="code", schedule="linear", evals=4),
    Setting("new_qwen2_short", "plain", "new_qwen2", "full", NEW, 30, 8, warmup=0, evals=4, evals_at_start=False),
    Setting("new_gpt2", "plain", "new_gpt2", "full", NEW, 120, 4, task="code", warmup=0.05, every=5, evals=0),
    Setting("new_gpt2_sgd", "plain", "new_gpt2", "full", SGD, 80, 4, optimizer="sgd", clip=0, shows=NO_NORMS),
    Setting("new_wide", "plain", "new_wide", "full", NEW, 80, 4, task="code", schedule="linear", evals=4, shows=NO_LR),
    # Small batches at a constant rate.
    Setting("llama_lora_1", "plain", "llama", "lora", NEAR_LORA, 120, 1, schedule="constant", warmup=0, evals=1),
    Setting("llama_lora_2", "plain", "llama", "lora", NEAR_LORA, 100, 2, schedule="constant", every=5, evals=1),
    Setting("qwen2_lora_1", "plain", "qwen2", "lora", NEAR_LORA, 100, 1, schedule="constant_with_warmup", evals=1),
    Setting("gpt2_lora_1", "plain", "gpt2", "lora", NEAR_LORA, 120, 1, schedule="constant", warmup=0, evals=1),
    Setting("gpt2_full_1", "plain", "gpt2", "full", NEAR_NEW, 100, 1, schedule="constant", warmup=0, evals=1),
    Setting("new_llama_1", "plain", "new_llama", "full", NEAR_NEW, 200, 1, schedule="constant", every=10, evals=1),
    Setting("new_qwen2_1", "plain", "new_qwen2", "full", NEAR_NEW, 120, 1, task="code", schedule="constant", evals=1),
    Setting("new_gpt2_1", "plain", "new_gpt2", "full", NEAR_NEW, 120, 1, schedule="constant", every=5, evals=1),
    # Rates close to each other, just above the best, and small batches: these oscillate.
    Setting(
        "near_llama_lora",
        "near",
        "llama",
        "lora",
        "1e-3 3e-3 6e-3 8e-3 1e-2 1.2e-2 1.5e-2 2e-2",
        100,
        1,
        schedule="constant_with_warmup",
        evals=1,
        seed=1,
    ),
    Setting(
        "near_qwen2_lora",
        "near",
        "qwen2",
        "lora",
        "1e-3 3e-3 6e-3 1e-2 1.5e-2 2e-2 2.5e-2 3e-2",
        100,
        2,
        schedule="constant_with_warmup",
        evals=1,
        seed=2,
        every=5,
    ),
    Setting(
        "near_gpt2_full",
        "near",
        "gpt2",
        "full",
        "1e-3 3e-3 6e-3 8e-3 1e-2 1.2e-2 1.5e-2 2e-2",
        100,
        1,
        schedule="constant",
        evals=1,
        seed=3,
    ),
    Setting(
        "near_llama_full",
        "near",
        "llama",
        "full",
        "1e-3 3e-3 6e-3 1e-2 1.3e-2 1.6e-2 2e-2 3e-2",
        100,
        1,
        schedule="constant_with_warmup",
        evals=1,
        seed=4,
        shows=NO_NORMS,
    ),
    Setting(
        "near_new_gpt2",
        "near",
        "new_gpt2",
        "full",
        "1e-3 1e-2 3e-2 4e-2 5e-2 7e-2 1e-1 1.5e-1",
        120,
        1,
        schedule="constant_with_warmup",
        evals=1,
        seed=5,
    ),
    Setting(
        "near_base_lora",
        "near",
        "base",
        "lora",
        "1e-3 3e-3 6e-3 1e-2 1.5e-2 2e-2 3e-2 4e-2",
        50,
        1,
        schedule="constant_with_warmup",
        evals=1,
        seed=6,
    ),
    # Plain gradient descent without clipping, up to rates that end in inf or nan.
    Setting(
        "explode_gpt2",
        "explosive",
        "gpt2",
        "full",
        "1e-2 1e-1 1 10 30 100 1e3 1e4",
        40,
        4,
        optimizer="sgd",
        clip=0,
        schedule="constant",
        warmup=0,
        evals=4,
    ),
    Setting(
        "explode_llama",
        "explosive",
        "llama",
        "full",
        "1e-2 1e-1 1 10 30 100 1e3 1e4",
        40,
        4,
        optimizer="sgd",
        clip=0,
        schedule="constant",
        warmup=0,
        evals=0,
    ),
    Setting(
        "explode_qwen2",
        "explosive",
        "new_qwen2",
        "full",
        "1e-2 1e-1 1 10 30 100 1e3 1e4",
        60,
        2,
        optimizer="sgd",
        clip=0,
        schedule="linear",
        every=5,
        evals=4,
        task="code",
    ),
    Setting(
        "explode_new_gpt2",
        "explosive",
        "new_gpt2",
        "full",
        "1e-2 1e-1 1 10 30 100 1e3 1e4",
        40,
        8,
        optimizer="sgd",
        clip=0,
        shows=NO_NORMS,
        evals=4,
    ),
    # Few rows, seen many times.
    Setting("tiny_base_lora", "tiny", "base", "lora", LORA, 40, 4, rows=8, evals=2),
    Setting("tiny_llama_lora", "tiny", "llama", "lora", LORA_HIGH, 100, 4, rows=16, evals=2, every=5),
    Setting("tiny_llama_full", "tiny", "llama", "full", FULL, 60, 8, rows=32, evals=2, evals_at_start=False),
    Setting("tiny_qwen2_full", "tiny", "qwen2", "full", FULL, 80, 4, rows=16, schedule="linear", evals=1, every=10),
    Setting("tiny_qwen2_freeze", "tiny", "qwen2", "freeze", FULL, 80, 4, rows=8, schedule="constant", evals=2),
    Setting("tiny_gpt2_full", "tiny", "gpt2", "full", FULL, 80, 4, rows=24, evals=4, every=5, shows=NO_NORMS),
    Setting(
        "tiny_gpt2_lora", "tiny", "gpt2", "lora", LORA_HIGH, 80, 4, rows=16, schedule="constant", warmup=0, evals=1
    ),
    Setting("tiny_new_llama", "tiny", "new_llama", "full", NEW, 120, 4, rows=32, task="code", evals=2),
    Setting("tiny_new_qwen2", "tiny", "new_qwen2", "full", NEW, 80, 4, rows=16, schedule="linear", evals=1),
    # Decay added at rates that do well without it.
    Setting(
        "decay_llama_lora",
        "decay",
        "llama",
        "lora",
        "1e-4 3e-3 1e-2 1e-1",
        60,
        4,
        decays="3e-3: 0.1 10 30 100; 1e-2: 10 30",
    ),
    Setting(
        "decay_llama_full",
        "decay",
        "llama",
        "full",
        "1e-5 1e-3 3e-3 1e-1",
        60,
        4,
        decays="1e-3: 0.1 10 30 100; 3e-3: 3 10 30",
        every=5,
    ),
    Setting(
        "decay_qwen2",
        "decay",
        "qwen2",
        "full",
        "1e-5 1e-3 3e-3 1e-1",
        50,
        4,
        decays="1e-3: 0.01 10 30 100; 3e-3: 10 30",
        schedule="constant",
        evals=4,
    ),
    Setting(
        "decay_gpt2",
        "decay",
        "gpt2",
        "full",
        "1e-5 1e-3 3e-3 1e-1",
        80,
        4,
        decays="1e-3: 0.1 10 30; 3e-3: 3 10 30",
        schedule="linear",
        every=10,
    ),
    Setting(
        "decay_new_llama",
        "decay",
        "new_llama",
        "full",
        "1e-4 3e-3 1e-2 3e-2 1",
        100,
        4,
        decays="3e-3: 0.01 3 10 30; 1e-2: 1 3 10",
        task="code",
    ),
    Setting(
        "decay_new_gpt2",
        "decay",
        "new_gpt2",
        "full",
        "1e-4 3e-3 1e-2 3e-2 1",
        80,
        4,
        decays="3e-3: 0.1 3 10 30; 1e-2: 3 10",
        every=5,
        evals=4,
    ),
    # Nothing is learned at any rate.
    Setting("scaled_away", "scaled away", "llama", "lora", "1e-5 1e-3 1e-1", 30, 4, alpha=1e-30, evals=4),
    Setting("scaled_away_logs", "scaled away", "gpt2", "lora", "1e-4 1e-3 1e-2", 60, 4, alpha=1e-30, every=5, evals=0),
    Setting("no_step", "no step", "qwen2", "full", "1e-5 1e-3 1e-2", 40, 4, eps=1e30, evals=4),
    Setting("no_step_logs", "no step", "llama", "full", "1e-5 1e-4 1e-3", 80, 2, eps=1e30, every=10, evals=0),
    Setting(
        "no_step_tiny", "no step", "new_gpt2", "full", "1e-4 1e-3 1e-2", 60, 4, rows=16, eps=1e30, every=5, evals=4
    ),
    Setting("no_step_qwen2", "no step", "qwen2", "lora", "1e-5 1e-4 1e-3", 25, 4, eps=1e30, evals=4, shows=NO_NORMS),
    Setting("dead_freeze", "dead base", "dead", "freeze", "1e-6 1e-4 1e-2", 40, 4, every=5, evals=4),
    Setting("dead_lora", "dead base", "dead", "lora", "1e-5 1e-3 1e-1", 30, 4, evals=0, shows=NO_NORMS),
]


# Training


class _Host:
    """Hands out the runs of a setting and keeps their measurements."""

    def __init__(self, configs: Sequence[SweepConfig], folder: Path) -> None:
        self._trials = [Trial(i, config, folder / str(i)) for i, config in enumerate(configs)]
        self.measurements: list[list[Measurement]] = [[] for _ in configs]
        self.outcomes: list[Outcome] = []

    def next_trial(self) -> Trial | None:
        return self._trials.pop(0) if self._trials else None

    def report(self, measurements: Sequence[Measurement]) -> dict[int, Stop]:
        for measurement in measurements:
            self.measurements[measurement.number].append(measurement)
        return {}

    def finish(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def train(setting: Setting, folder: Path) -> list[dict[str, Any]]:
    """Trains a setting's runs.

    Returns:
        Each run's learning rate and decay, every step's loss, gradient norm and rate, and the probes with their steps.
    """
    data = {"data.path": "embedded"}
    if setting.task == "code":
        files = {"data.path": "code.jsonl", "data.eval_path": "code_eval.jsonl"}
        data = {key: str(folder / file) for key, file in files.items()} | {"data.format": "text"}
    shared = replace(
        sweep_config(["+sweep=lora_lr", f"optimizer={setting.optimizer}"]),
        {
            "model.path": "embedded" if setting.model == "base" else str(folder / setting.model),
            "data.max_train_rows": setting.rows,
            "data.max_eval_rows": PROBE_ROWS,
            "finetune.mode": setting.mode,
            "finetune.trainable_layers": 1,
            "finetune.alpha": setting.alpha,
            "optimizer.eps": setting.eps,
            "scheduler.name": setting.schedule,
            "scheduler.warmup_ratio": setting.warmup,
            "scheduler.warmup_steps": None,
            "training.max_steps": setting.steps,
            "training.batch_size": setting.batch,
            "training.max_grad_norm": float(setting.clip),
            "training.eval_every": math.ceil(setting.steps / PROBES),
            "training.seed": setting.seed,
            "training.save_adapter": False,
        }
        | data,
    )
    configs = [replace(shared, {"optimizer.lr": lr, "optimizer.weight_decay": wd}) for lr, wd in setting.runs()]
    host = _Host(configs, folder)
    PackedEngine(8, shared.finetune.r).run(host)
    faults = [outcome.reason for outcome in host.outcomes if outcome.status == "failed"]
    assert not faults, f"{setting.name}: {faults[0]}"
    runs = []
    for (lr, decay), measured in zip(setting.runs(), host.measurements, strict=True):
        steps = [m.metrics for m in measured if "loss" in m.metrics]
        probes = [(m.step, m.metrics["eval_loss"]) for m in measured if "eval_loss" in m.metrics]
        series = {name: [_rounded(step[name]) for step in steps] for name in ("loss", "grad_norm", "learning_rate")}
        probe = {"steps": [step for step, _ in probes], "values": [_rounded(value, 7) for _, value in probes]}
        runs.append({"lr": lr, "weight_decay": decay, "series": series, "probe": probe})
    return runs


def _rounded(value: float, digits: int = 7) -> float:
    return float(f"{value:.{digits}g}")


def prepare(folder: Path) -> None:
    """Writes the models, and the rows of the task `code`, into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    texts = corpus.pretraining_texts()
    for name, sources, count in (("code", texts, 2400), ("code_eval", corpus.held_out_texts(), 2 * PROBE_ROWS)):
        windows = [text[i : i + 120] for text in sources for i in range(0, len(text) - 120, 120)]
        spread = windows[:: max(len(windows) // count, 1)][:count]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in spread))
    some = "".join(texts[:: max(len(texts) // 60, 1)])[:1_500_000]
    stream = torch.tensor(tokenizer(some, verbose=False)["input_ids"])
    for name, (kind, width, layers, heads, steps) in MODELS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(_model_config(kind, width, layers, heads, len(tokenizer)))
        _pretrain(model, stream, steps)
        if name == "dead":
            # The last hidden states are zero: all tokens are equally likely, and no gradient passes.
            torch.nn.init.zeros_(model.model.norm.weight)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def _model_config(kind: str, width: int, layers: int, heads: int, vocabulary: int) -> Any:
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    if kind == "gpt2":
        return GPT2Config(
            vocab_size=vocabulary,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            n_positions=256,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **ends,
        )
    make = LlamaConfig if kind == "llama" else Qwen2Config
    return make(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        **ends,
    )


def _pretrain(model: Any, stream: torch.Tensor, steps: int) -> None:
    """Trains on next tokens, with 16 random windows of 64 tokens per step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = get_cosine_schedule_with_warmup(optimizer, 20, max(steps, 1))
    model.train()
    for _ in range(steps):
        starts = torch.randint(len(stream) - 64, (16,)).tolist()
        batch = torch.stack([stream[start : start + 64] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


# Writing


def logged(setting: Setting, run: Mapping[str, Any]) -> list[dict[str, float]]:
    """Returns the rows of this run's log: all that the diagnosis sees."""
    series = run["series"]
    ended = not all(math.isfinite(series[name][-1]) for name in ("loss", "grad_norm"))
    count, rows = len(series["loss"]), []
    for start in range(0, count, setting.every):
        stop = min(start + setting.every, count)
        # Steps after the last full mean are logged, with grad_norm, only if a value that is not finite ended the run.
        if stop - start < setting.every and not ended:
            continue
        row = {"step": stop, "loss": _rounded(float(np.mean(series["loss"][start:stop])), 5)}
        shown = {*setting.shows, "grad_norm"} if ended and stop == count else setting.shows
        rows.append(row | {name: _rounded(series[name][stop - 1], 5) for name in sorted(shown)})
    probes = list(zip(run["probe"]["steps"], run["probe"]["values"], strict=True))
    if setting.evals:
        kept = probes[:: -setting.evals][::-1]
        rows += [
            {"step": step, "eval_loss": _rounded(value, 5)} for step, value in kept if step or setting.evals_at_start
        ]
    return sorted(rows, key=lambda row: row["step"])


def halves(settings: Sequence[Setting]) -> dict[str, str]:
    """Returns the half of each setting. Halves alternate within a kind, in the order of the names' hashes."""
    found = {}
    for _, group in itertools.groupby(sorted(settings, key=_by_hash), key=lambda setting: setting.kind):
        for setting, half in zip(group, itertools.cycle(("tuning", "held out")), strict=False):
            found[setting.name] = half
    return found


def _by_hash(setting: Setting) -> tuple[str, str]:
    return setting.kind, hashlib.sha256(setting.name.encode()).hexdigest()


def entries(setting: Setting, half: str, runs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields a line of the corpus for every run, also for those without a label."""
    labels = label_group(setting.kind, setting.steps * setting.batch / setting.rows, runs)
    described = {key: value for key, value in asdict(setting).items() if key not in ("lrs", "decays")}
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        yield {
            "id": f"{setting.name}-{i}",
            "group": setting.name,
            "half": half,
            "label": label,
            "lr": run["lr"],
            "weight_decay": run["weight_decay"],
            "setting": described,
            "probe": [_rounded(value, 5) for value in run["probe"]["values"]],
            "rows": logged(setting, run),
        }


def main() -> None:
    """Trains the missing runs, labels all of them, and writes the corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="keep the runs here (default: a temporary folder)")
    folder = parser.parse_args().runs or Path(tempfile.mkdtemp())
    # One thread: sums in another order change runs where training is chaotic.
    torch.set_num_threads(1)
    if not (folder / "models").exists():
        prepare(folder / "models")
    half = halves(SETTINGS)
    found: list[dict[str, Any]] = []
    for setting in SETTINGS:
        kept = folder / f"{setting.name}.json"
        if not kept.exists():
            started = time.perf_counter()
            kept.write_text(json.dumps(train(setting, folder / "models")))
            print(f"{setting.name}: {time.perf_counter() - started:.0f} s", flush=True)
        found += entries(setting, half[setting.name], json.loads(kept.read_text()))
    counts = Counter((entry["label"], entry["half"]) for entry in found)
    for label in sorted({label for label, _ in counts}):
        print(f"{label or '(none)':17} tuning {counts[label, 'tuning']:3}  held out {counts[label, 'held out']:3}")
    CORPUS.parent.mkdir(exist_ok=True)
    # Without a time stamp and a name in the file, the same curves give the same bytes.
    with CORPUS.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
        for entry in found:
            packed.write((json.dumps(entry, separators=(",", ":")) + "\n").encode())
    print(f"{CORPUS}: {len(found)} runs, {sum(bool(entry['label']) for entry in found)} labelled")


if __name__ == "__main__":
    main()
