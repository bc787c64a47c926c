"""Measures loss over learning rate on the embedded model and task: `python benchmarks/embedded.py`, about a minute.

Uses plain torch and PEFT, and only the model and data from lrsweep: a reference for what a sweep should find. Prints a
table and writes `benchmarks/results/embedded.json`.
"""

import copy
import datetime
import json
import os
import platform
import random
import time
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

from lrsweep.embedded import BASE, corpus

LRS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
STEPS, WARMUP, BATCH, EVAL_ROWS, SEED = 60, 6, 8, 128, 0
RESULTS = Path(__file__).parent / "results" / "embedded.json"


def tokenize(row: dict[str, str], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Returns token ids and labels; only the completion and the <eos> after it have labels."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    completion = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
    return prompt + completion, [-100] * len(prompt) + completion


def collate(examples: list[tuple[list[int], list[int]]], pad: int) -> dict[str, Tensor]:
    """Returns a batch [B, T], padded on the right."""
    longest = max(len(ids) for ids, _ in examples)
    rest = [longest - len(ids) for ids, _ in examples]
    return {
        "input_ids": torch.tensor([ids + [pad] * n for (ids, _), n in zip(examples, rest, strict=True)]),
        "labels": torch.tensor([labels + [-100] * n for (_, labels), n in zip(examples, rest, strict=True)]),
        "attention_mask": torch.tensor([[1] * (longest - n) + [0] * n for n in rest]),
    }


@torch.no_grad()
def evaluate(model: Any, batches: list[dict[str, Tensor]]) -> float:
    """Returns the mean loss per label token over all batches, in nats."""
    model.eval()
    total, tokens = 0.0, 0
    for batch in batches:
        count = int((batch["labels"] != -100).sum())
        total += model(**batch).loss.item() * count
        tokens += count
    return total / tokens


def run(
    base: Any, mode: str, lr: float, batches: list[dict[str, Tensor]], eval_batches: list[dict[str, Tensor]]
) -> dict[str, Any]:
    """Fine-tunes a copy of the base; returns its final eval loss, its training losses and the seconds it took."""
    started = time.perf_counter()
    model = copy.deepcopy(base)
    torch.manual_seed(SEED)
    if mode == "lora":
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    scheduler = get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    losses = []
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 3))
    eval_loss = round(evaluate(model, eval_batches), 4)
    seconds = round(time.perf_counter() - started, 1)
    return {"mode": mode, "lr": lr, "eval_loss": eval_loss, "seconds": seconds, "losses": losses}


def main() -> None:
    """Trains at every learning rate, with LoRA and with full fine-tuning."""
    # Two threads are a third faster on a quiet machine, but ten times slower on a busy one, where they wait for a core.
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    train, evaluation = corpus.rows()
    shuffle = random.Random(SEED)
    train_examples = [tokenize(row, tokenizer) for row in shuffle.sample(train, STEPS * BATCH)]
    eval_examples = [tokenize(row, tokenizer) for row in shuffle.sample(evaluation, EVAL_ROWS)]
    pad = tokenizer.pad_token_id
    batches = [collate(train_examples[i : i + BATCH], pad) for i in range(0, STEPS * BATCH, BATCH)]
    eval_batches = [collate(eval_examples[i : i + 32], pad) for i in range(0, EVAL_ROWS, 32)]

    started = time.perf_counter()
    base = AutoModelForCausalLM.from_pretrained(BASE)
    base_loss = round(evaluate(base, eval_batches), 4)
    runs = []
    for mode in ("lora", "full"):
        for lr in LRS:
            runs.append(run(base, mode, lr, batches, eval_batches))
            print("{mode:5} lr {lr:<7.0e} eval_loss {eval_loss:.3f}  {seconds} s".format(**runs[-1]), flush=True)

    print("\n| lr | " + " | ".join(f"{lr:.0e}" for lr in LRS) + " |\n|" + "---|" * (len(LRS) + 1))
    for mode in ("lora", "full"):
        losses = {entry["lr"]: entry["eval_loss"] for entry in runs if entry["mode"] == mode}
        best = min(losses.values())
        cells = (f"**{loss:.3f}**" if loss == best else f"{loss:.3f}" for loss in losses.values())
        print(f"| {mode} | " + " | ".join(cells) + " |")
    print(f"\nbase: eval_loss {base_loss:.3f}")

    about = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()}-core CPU",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "task": {"train_rows": len(train), "eval_rows": len(evaluation)},
        "steps": STEPS,
        "warmup_steps": WARMUP,
        "batch_size": BATCH,
        "eval_rows_used": EVAL_ROWS,
        "seed": SEED,
        "threads": torch.get_num_threads(),
        "base_eval_loss": base_loss,
        "seconds": round(time.perf_counter() - started, 1),
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in about.items()]
    lines.append('  "runs": [\n' + ",\n".join(f"    {json.dumps(entry)}" for entry in runs) + "\n  ]")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("{\n" + "\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
