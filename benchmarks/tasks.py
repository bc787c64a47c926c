"""Measures the truth of four small tasks: `python benchmarks/tasks.py`, about an hour.

Each task has a model of its own, pretrained here for a minute, its own rows and batch size. It is trained at 10
learning rates, a third of a decade apart, with 8 seeds each, for 12 to 400 steps. Writes to
`results/tasks/NAME.npz`, for each budget, the eval losses [rates, seeds, evaluations] and the last loss on each eval
row [rates, seeds, rows]. `verdict.py` replays them. Two tasks are for tuning; the other two are set aside, and judge
the result.
"""

import argparse
import ast
import itertools
import json
import math
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import RESULTS

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig, replace
from lrsweep.embedded import BASE, corpus
from lrsweep.training.engines import Measurement, Outcome, Stop, Trial
from lrsweep.training.engines.packed import PackedEngine

BUDGETS, SEEDS = (12, 24, 48, 20, 60, 120, 400), 8
LRS = np.logspace(-4, -1, 10)
EVALS = 4
EVAL_ROWS = 128
TRAIN_ROWS = 2000

Row = dict[str, str]


@dataclass(frozen=True)
class Task:
    """A model's shape, the rows it learns, and how.

    Attributes:
        config: transformers' config of the model.
        rows: Yields the rows, train side first.
        mode: `lora` or `full`.
        batch_size: Rows of a step.
        held_out: Whether the task was set aside while the statistics were built.
    """

    config: transformers.PreTrainedConfig
    rows: Callable[[], Sequence[Row]]
    mode: str
    batch_size: int
    held_out: bool


def _documented() -> list[Row]:
    train, evaluation = corpus.rows()
    return [*train[:TRAIN_ROWS], *evaluation[:EVAL_ROWS]]


def _signatures() -> list[Row]:
    return [
        {"prompt": row["completion"] + "\n", "completion": "def " + row["prompt"].split("\n")[0]}
        for row in _documented()
    ]


def _sums() -> list[Row]:
    draw = random.Random(0)
    numbers = [(draw.randint(0, 99), draw.randint(0, 99)) for _ in range(TRAIN_ROWS + EVAL_ROWS)]
    return [{"prompt": f"{a} + {b} = ", "completion": f"{a + b} is the sum"} for a, b in numbers]


def _names() -> list[Row]:
    """The body of a function, and its name."""
    rows: list[Row] = []
    for texts, count in ((corpus.pretraining_texts(), TRAIN_ROWS), (corpus.held_out_texts(), EVAL_ROWS)):
        side = []
        for text in texts:
            try:
                functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
            except SyntaxError:
                continue
            for node in functions:
                body = "\n".join(ast.unparse(statement) for statement in node.body if not _is_text(statement))
                if 20 <= len(body) <= 160:
                    side.append({"prompt": body + "\n", "completion": "name: " + node.name})
        rows += random.Random(0).sample(side, count)
    return rows


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _shape(hidden: int, layers: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 2048,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        **more,
    }


def tasks() -> dict[str, Task]:
    """Returns the tasks by name."""
    gemma = transformers.GemmaConfig(**_shape(64, 2, head_dim=16))
    return {
        "llama_docstrings": Task(transformers.LlamaConfig(**_shape(64, 2)), _documented, "lora", 2, False),
        "qwen2_signatures": Task(transformers.Qwen2Config(**_shape(48, 4)), _signatures, "full", 4, False),
        "gemma_sums": Task(gemma, _sums, "full", 8, True),
        "mistral_names": Task(transformers.MistralConfig(**_shape(64, 2)), _names, "lora", 2, True),
    }


def pretrained(task: Task, folder: Path) -> Path:
    """Writes the task's base, pretrained on the train side's sources, unless it is there; returns its folder."""
    if (folder / "model.safetensors").exists():
        return folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(task.config)
    texts = corpus.pretraining_texts()
    random.Random(0).shuffle(texts)
    stream = torch.tensor([token for text in texts[:150] for token in tokenizer(text)["input_ids"]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    steps = 300
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        batch = stream[torch.randint(len(stream) - 64, (16, 1)) + torch.arange(64)]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    print(f"{folder.name}: pretrained, loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    return folder


class Host:
    """Hands out the trials, and keeps their eval losses and those of the eval rows."""

    def __init__(self, configs: Sequence[SweepConfig], folder: Path) -> None:
        self._trials = iter(enumerate(configs))
        self._folder = folder
        self.evals: dict[int, list[tuple[int, float]]] = {}
        self.rows: dict[int, Sequence[float]] = {}
        self.tokens: Sequence[int] = ()
        self.status: dict[int, str] = {}

    def next_trial(self) -> Trial | None:
        number, config = next(self._trials, (0, None))
        if config is None:
            return None
        self.evals[number] = []
        return Trial(number, config, self._folder / str(number))

    def report(self, measurements: Sequence[Measurement]) -> dict[int, Stop]:
        for found in measurements:
            if found.row_losses is not None:
                self.evals[found.number].append((found.step, found.metrics["eval_loss"]))
                self.rows[found.number] = found.row_losses.sums
                self.tokens = found.row_losses.tokens
        return {}

    def finish(self, outcome: Outcome) -> None:
        assert outcome.status in ("complete", "diverged"), outcome
        self.status[outcome.number] = outcome.status


def measure(task: Task, base: Path, budget: int, folder: Path) -> dict[str, Any]:
    """Returns the arrays of one budget."""
    data = task.rows()
    (folder / "train.json").write_text(json.dumps(list(data[:-EVAL_ROWS])))
    (folder / "eval.json").write_text(json.dumps(list(data[-EVAL_ROWS:])))
    config = sweep_config(
        [
            f"+sweep={task.mode}_lr", "model=local", f"model.path={base}", "data=local",
            f"data.path={folder}/train.json", f"data.eval_path={folder}/eval.json",
            "data.format=prompt_completion", "data.max_length=128",
            f"training.max_steps={budget}", f"training.batch_size={task.batch_size}", "training=short",
            f"training.eval_every={budget // EVALS}", "training.save_adapter=false",
            "training.checkpoint_seconds=null", "name=tasks",
        ]
    )  # fmt: skip
    lrs = [float(f"{lr:.4g}") for lr in LRS]
    configs = [
        replace(config, {"optimizer.lr": lr, "training.seed": seed})
        for lr, seed in itertools.product(lrs, range(SEEDS))
    ]
    host = Host(configs, folder)
    PackedEngine(10, rank=8, pass_sizes=folder / "pass_sizes.json").run(host)
    evals = np.full((len(configs), EVALS + 1), np.nan)
    rows = np.full((len(configs), EVAL_ROWS), np.nan)
    for number, found in host.evals.items():
        evals[number, : len(found)] = [loss for _, loss in found]
        if host.status[number] == "complete":
            rows[number] = host.rows[number]
    shape = (len(lrs), SEEDS, -1)
    return {
        "lrs": np.array(lrs),
        f"evals_{budget}": evals.reshape(shape).astype(np.float32),
        f"rows_{budget}": rows.reshape(shape).astype(np.float32),
        "tokens": np.array(host.tokens, dtype=np.int16),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="the tasks; all if none is given")
    parser.add_argument("--bases", type=Path, default=Path(".tmp/tasks"), help="folder of the pretrained models")
    parser.add_argument("--out", type=Path, default=RESULTS / "tasks")
    arguments = parser.parse_args()
    known = tasks()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or known:
        base = pretrained(known[name], (arguments.bases / name).absolute())
        path = arguments.out / f"{name}.npz"
        arrays: dict[str, Any] = dict(np.load(path)) if path.exists() else {}
        for budget in BUDGETS:
            if f"evals_{budget}" in arrays:
                continue  # measured by an earlier run
            with tempfile.TemporaryDirectory() as folder:
                arrays |= measure(known[name], base, budget, Path(folder))
            finals = arrays[f"evals_{budget}"][:, :, -1]
            print(
                name, budget, np.round(np.nanmean(finals, 1), 3), np.round(np.nanstd(finals, 1, ddof=1), 4), flush=True
            )
            np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main()
