"""Measures packed trials on one large GPU: `python benchmarks/gpu.py --budget-seconds 540`.

Uses the shapes of Qwen2.5-0.5B and Llama-3.1-8B with random bf16 weights; LoRA r=16 on all linear layers, in float32;
rows of 512 random tokens, the second half with labels; no activation checkpointing. Needs torch, transformers, peft and
a checkout of this repository. Downloads nothing, and imports only `lrsweep.training.packing`.

Arms: stock Trainer (bf16, SDPA, fused AdamW); the same, tuned (compiled decoder, logits at labels only, no check for
NaN); several processes with a stock Trainer each; packed, K trials, with the pass size measured as the engine does;
packed with a compiled decoder, K trials per pass. The most informative cells run first. A cell that might not fit into
the budget is skipped; `--resume FILE` continues from the results of an earlier run.

Shares of the measured matmul peak count 4P FLOPs per token (P: parameters of the linear layers and the output layer;
the base's forward pass and its gradient of activations, without attention and adapters). `done` counts the output layer
only where the arm computes it.
"""

import argparse
import gc
import itertools
import json
import multiprocessing
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from common import RESULTS, about, save, table
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PrinterCallback,
    Qwen2Config,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
    set_seed,
)

from lrsweep.training.packing import Pack, join, pack_lora, runs, train_pass
from lrsweep.training.packing.pass_size import PassSizes

# PEFT still uses transformers' old name.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
LABELLED, LR, CLIP, SEED = 0.5, 1e-4, 1.0, 0
WARM, MOST, ENOUGH_SECONDS = 3, 20, 4.0  # untimed steps; timed steps at most; seconds after which timing stops

SMALL, LARGE, TINY = "Qwen2.5-0.5B", "Llama-3.1-8B", "tiny"
CONFIGS: dict[str, PreTrainedConfig] = {
    SMALL: Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    LARGE: LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    ),
    TINY: LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    ),
}
TRAINER, TUNED, PROCESSES = "Trainer", "tuned Trainer", "Trainer processes"
PACKED, COMPILED = "packed", "packed, compiled"


@dataclass(frozen=True)
class Cell:
    """One measurement; `k` is the number of trials in the pack, or of processes."""

    model: str
    batch: int
    arm: str
    k: int = 1

    def __str__(self) -> str:
        return f"{self.model} B={self.batch} {self.arm}" + (f" K={self.k}" if self.arm not in (TRAINER, TUNED) else "")

    @property
    def guess(self) -> float:
        """Seconds that it may take on a large GPU, building the model included."""
        seconds = {TRAINER: 12, TUNED: 90, PROCESSES: 60, PACKED: 12 + self.k / 2, COMPILED: 90}[self.arm]
        return seconds * (2 if self.model == LARGE else 1)


def plan(smoke: bool) -> list[Cell]:
    """Returns all cells, the most informative first."""
    if smoke:
        arms = [(TRAINER, 1), (PACKED, 1), (PACKED, 4), (PROCESSES, 2), (COMPILED, 2), (TUNED, 1)]
        return [Cell(TINY, 2, arm, k) for arm, k in arms]
    first = [
        *[Cell(SMALL, 1, arm, k) for arm, k in ((TRAINER, 1), (PACKED, 8), (PACKED, 32), (PACKED, 1), (COMPILED, 8))],
        *[Cell(SMALL, 1, arm, k) for arm, k in ((TUNED, 1), (PROCESSES, 4))],
        # The control: no gain is expected, and there must be no loss.
        *[Cell(LARGE, 8, arm, k) for arm, k in ((TRAINER, 1), (PACKED, 1), (PACKED, 4))],
        *[Cell(LARGE, 1, arm, k) for arm, k in ((TRAINER, 1), (PACKED, 8), (PACKED, 1))],
        *[Cell(SMALL, 8, arm, k) for arm, k in ((TRAINER, 1), (PACKED, 8), (PACKED, 1))],
    ]
    eager = [
        Cell(model, batch, arm, k)
        for batch, model, (arm, k) in itertools.product(
            (1, 2, 4, 8), (SMALL, LARGE), ((TRAINER, 1), *((PACKED, k) for k in (1, 4, 8, 16, 32)))
        )
    ]
    slow = [
        Cell(model, batch, arm, k)
        for batch, model, (arm, k) in itertools.product(
            (1, 8, 2, 4), (SMALL, LARGE), ((TUNED, 1), (COMPILED, 8), (PROCESSES, 4), (COMPILED, 32), (PROCESSES, 8))
        )
    ]
    return list(dict.fromkeys([*first, *eager, *slow]))


# Models, data, time


def base_model(name: str) -> Any:
    """Returns a model with random bf16 weights, created on the device."""
    torch.manual_seed(SEED)
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.bfloat16, attn_implementation="sdpa")
    model.config.use_cache = False
    return model


def make_rows(name: str, count: int, tokens: int) -> list[dict[str, Tensor]]:
    """Returns random rows; the last tokens of each, a share of LABELLED, have labels."""
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(CONFIGS[name].vocab_size, (count, tokens), generator=generator)
    labels = ids.clone()
    labels[:, : tokens - round(tokens * LABELLED)] = -100
    return [{"input_ids": row, "labels": wanted} for row, wanted in zip(ids, labels, strict=True)]


def stack(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def finish() -> None:
    """Waits for the device."""
    if ON_GPU:
        torch.cuda.synchronize()


def clock() -> float:
    """Returns the time in seconds, after the device has finished."""
    finish()
    return time.monotonic()


def timed(step: Callable[[], object]) -> float:
    """Returns the mean seconds per step over several steps, without waiting for the device between them."""
    for _ in range(WARM):
        step()
    start = clock()
    step()
    steps = int(min(max(ENOUGH_SECONDS / (clock() - start), 3), MOST))
    start = clock()
    for _ in range(steps):
        step()
    return (clock() - start) / steps


def matmul_peak(size: int) -> float:
    """Returns the FLOP/s of a bf16 matrix product."""
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / min(timed(lambda: torch.mm(a, b)) for _ in range(3))


def sizes(name: str) -> tuple[int, int]:
    """Returns the number of parameters of the linear layers, and of the output layer."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
    head = model.get_output_embeddings()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    return linear, head.weight.numel()


# Arms: each returns seconds per trial-step, and more entries for the results file


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Times Trainer's steps after the first few, and stops training after enough of them."""

    def __init__(self) -> None:
        self.start = self.stop = 0.0
        self.steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == WARM:
            self.start = clock()
        elif state.global_step > WARM:
            self.steps = state.global_step - WARM
            enough = self.steps >= 3 and time.monotonic() - self.start > ENOUGH_SECONDS
            if enough or self.steps == MOST:
                self.stop = clock()
                control.should_training_stop = True


class LabelLogitsTrainer(Trainer):  # type: ignore[misc]
    """Stock Trainer, but it computes logits only at positions that predict a label."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        causal = model.get_base_model()
        labels = inputs["labels"][:, 1:]
        wanted = labels != -100
        with torch.autocast(DEVICE.type, torch.bfloat16):
            hidden = causal.get_decoder()(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state[:, :-1]
            logits = causal.lm_head(hidden[wanted])
        return F.cross_entropy(logits.float(), labels[wanted], reduction="sum") / num_items_in_batch


def make_trainer(cell: Cell, tokens: int, folder: str, *, tuned: bool) -> tuple[Trainer, Stopwatch]:
    """Returns a stock or tuned Trainer, and its stopwatch."""
    base = base_model(cell.model)
    set_seed(SEED)
    model = get_peft_model(base, LORA)
    if tuned:
        model.get_base_model().get_decoder().compile(dynamic=False)
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=WARM + MOST,
        per_device_train_batch_size=cell.batch,
        learning_rate=LR,
        max_grad_norm=CLIP,
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        bf16=True,
        seed=SEED,
        eval_strategy="no",
        save_strategy="no",
        logging_steps=10**9,
        logging_nan_inf_filter=not tuned,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not ON_GPU,
        dataloader_pin_memory=ON_GPU,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)
    stopwatch = Stopwatch()
    rows: Any = make_rows(cell.model, cell.batch * (WARM + MOST), tokens)
    kind = LabelLogitsTrainer if tuned else Trainer
    trainer = kind(model=model, args=arguments, train_dataset=rows, data_collator=stack, callbacks=[stopwatch])
    trainer.remove_callback(PrinterCallback)
    return trainer, stopwatch


def trainer_arm(cell: Cell, tokens: int, *, tuned: bool) -> tuple[float, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        trainer, stopwatch = make_trainer(cell, tokens, folder, tuned=tuned)
        trainer.train()
    return (stopwatch.stop - stopwatch.start) / stopwatch.steps, {}


def processes_arm(cell: Cell, tokens: int) -> tuple[float, dict[str, Any]]:
    """Runs stock Trainers in `k` processes; times from their common first timed step to the end of the last one."""
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(cell.k), context.Queue()
    processes = [context.Process(target=_one_of_several, args=(cell, tokens, ready, answers)) for _ in range(cell.k)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    errors = sorted({answer for answer in found if isinstance(answer, str)})
    if errors:
        raise (torch.OutOfMemoryError if "OutOfMemoryError" in errors else RuntimeError)("; ".join(errors))
    start, stop = min(answer[0] for answer in found), max(answer[1] for answer in found)
    steps = sum(answer[2] for answer in found)
    return (stop - start) / steps, {"peak_memory_gb": round(sum(answer[3] for answer in found), 2)}


def _one_of_several(cell: Cell, tokens: int, ready: Any, answers: Any) -> None:
    try:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            trainer, stopwatch = make_trainer(cell, tokens, folder, tuned=False)

            class StartTogether(TrainerCallback):  # type: ignore[misc]
                def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                    if state.global_step == WARM - 1:
                        finish()
                        ready.wait(240)

            trainer.add_callback(StartTogether())
            trainer.train()
        answers.put((stopwatch.start, stopwatch.stop, stopwatch.steps, peak_memory()))
    except threading.BrokenBarrierError:
        answers.put("another process failed")
    except Exception as fault:
        ready.abort()
        answers.put(type(fault).__name__)


def admit(pack: Pack, k: int) -> list[Any]:
    """Fills the slots; returns the trials' schedules."""
    schedules = []
    for slot in range(k):

        def make_optimizer(groups: Any, lr: float = LR * (1 + slot / 8)) -> torch.optim.Optimizer:
            return torch.optim.AdamW(groups, lr=lr, weight_decay=0.01)

        optimizer = pack.admit(slot, pack.start(LORA, SEED), make_optimizer, max_norm=CLIP)
        schedules.append(get_scheduler("cosine", optimizer, 0, 10_000))
    return schedules


def gradients(pack: Pack, k: int, batch: dict[str, Tensor], size: int) -> Tensor:
    """Computes the gradients of the slots 0..k in passes of `size` trials; returns their losses [k]."""
    parts = [train_pass(pack, start, stop, join([batch] * (stop - start))) for start, stop in runs(range(k), size)]
    return torch.cat(parts)


def packed_arm(cell: Cell, tokens: int) -> tuple[float, dict[str, Any]]:
    """Times passes of the fastest size, which is the arm's time, and one pass of all trials if it fits in memory."""
    batches = itertools.cycle([stack(make_rows(cell.model, cell.batch, tokens))])
    pack = pack_lora(base_model(cell.model), LORA, cell.k, compute=torch.bfloat16)
    schedules = admit(pack, cell.k)

    def step(size: int) -> None:
        gradients(pack, cell.k, next(batches), size)
        pack.arena.step(range(cell.k))
        for schedule in schedules:
            schedule.step()

    def one_pass(size: int) -> None:
        gradients(pack, size, next(batches), size)

    size = PassSizes().fastest("", cell.k, one_pass)
    pack.arena.grads.zero_()
    seconds = {size: timed(lambda: step(size)) / cell.k}
    extra: dict[str, Any] = {"trials_per_pass": size}
    if size < cell.k:
        try:
            seconds[cell.k] = timed(lambda: step(cell.k)) / cell.k
        except torch.OutOfMemoryError:
            extra["all_in_one_pass"] = "out of memory"
    if cell.k in seconds:
        extra["ms_all_in_one_pass"] = round(1000 * seconds[cell.k], 3)
    return seconds[size], extra


def compiled_arm(cell: Cell, tokens: int) -> tuple[float, dict[str, Any]]:
    """Times passes of all K trials with a compiled decoder, and compares its gradients with the eager ones."""
    batch = stack(make_rows(cell.model, cell.batch, tokens))
    pack = pack_lora(base_model(cell.model), LORA, cell.k, compute=torch.bfloat16)
    schedules = admit(pack, cell.k)
    for slot in range(cell.k):  # with B at zero, as it starts, A has no gradient to compare
        for name, weight in pack.arena.read(slot).items():
            if ".lora_B." in name:
                weight.normal_(std=0.02)
    eager_losses = gradients(pack, cell.k, batch, cell.k)
    eager = pack.arena.grads.clone()
    pack.arena.grads.zero_()
    pack.model.get_decoder().compile(dynamic=False)
    start = clock()
    losses = gradients(pack, cell.k, batch, cell.k)
    extra = {
        "seconds_to_compile": round(clock() - start, 1),
        "gradients_apart": float((pack.arena.grads - eager).norm() / eager.norm()),
        "losses_apart": float((losses / eager_losses - 1).abs().max()),
    }
    del eager
    pack.arena.grads.zero_()

    def step() -> None:
        gradients(pack, cell.k, batch, cell.k)
        pack.arena.step(range(cell.k))
        for schedule in schedules:
            schedule.step()

    return timed(step) / cell.k, extra


# One run


def peak_memory() -> float:
    """Returns the most GB ever allocated."""
    return torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else 0.0


def measure(cell: Cell, tokens: int) -> dict[str, Any]:
    """Returns a cell's entry in the results file; an error, like out of memory, is a result, too."""
    entry: dict[str, Any] = {"model": cell.model, "batch": cell.batch, "arm": cell.arm, "k": cell.k}
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    start = clock()
    try:
        if cell.arm == PACKED:
            seconds, extra = packed_arm(cell, tokens)
        elif cell.arm == COMPILED:
            seconds, extra = compiled_arm(cell, tokens)
        elif cell.arm == PROCESSES:
            seconds, extra = processes_arm(cell, tokens)
        else:
            seconds, extra = trainer_arm(cell, tokens, tuned=cell.arm == TUNED)
        entry |= {
            "ms_per_trial_step": round(1000 * seconds, 3),
            "tokens_per_second": round(cell.batch * tokens / seconds),
            "peak_memory_gb": round(peak_memory(), 2),
            **extra,
        }
    except torch.OutOfMemoryError:
        entry["failed"] = "out of memory"
    except Exception as fault:
        first_line = (str(fault).strip().splitlines() or [""])[0]
        entry["failed"] = f"{type(fault).__name__}: {first_line[:200]}"
    # Only here is the exception gone, and with it the frames that hold the model.
    gc.collect()
    torch.compiler.reset()
    if ON_GPU:
        torch.cuda.empty_cache()
    entry["cell_seconds"] = round(clock() - start, 1)
    return entry


def with_shares(entry: dict[str, Any], peak: float) -> dict[str, Any]:
    """Adds the shares of the matmul peak to an entry."""
    if "failed" in entry:
        return entry
    linear, head = sizes(entry["model"])
    flops = 4 * entry["tokens_per_second"] / peak
    computed = 1.0 if entry["arm"] in (TRAINER, PROCESSES) else LABELLED
    return entry | {
        "share_of_peak": round(flops * (linear + head), 4),
        "share_of_peak_done": round(flops * (linear + computed * head), 4),
    }


def report(entries: Sequence[dict[str, Any]]) -> None:
    """Prints a table by model and batch, and whether the targets are met."""
    stock = {(e["model"], e["batch"]): e["ms_per_trial_step"] for e in entries if e["arm"] == TRAINER and _ran(e)}
    rows = []
    for e in sorted(entries, key=lambda e: (e["model"] == LARGE, e["batch"])):
        name = f"{e['model']} B={e['batch']} {e['arm']}" + (f" K={e['k']}" if e["arm"] not in (TRAINER, TUNED) else "")
        if not _ran(e):
            rows.append([name, e["failed"][:40], "", "", "", "", "", ""])
            continue
        base = stock.get((e["model"], e["batch"]))
        faster = f"{base / e['ms_per_trial_step']:.2f}x" if base else ""
        rows.append(
            [
                name,
                f"{e['ms_per_trial_step']:.2f}",
                f"{e['tokens_per_second']:,}",
                faster,
                f"{e['peak_memory_gb']:.1f}",
                f"{e['share_of_peak']:.1%}",
                f"{e['share_of_peak_done']:.1%}",
                e.get("trials_per_pass", ""),
            ]
        )
    header = ["", "ms/trial-step", "tokens/s", "over Trainer", "GB", "of peak, 4P", "of peak, done", "trials per pass"]
    print("\n" + table(header, rows))
    ours = [e for e in entries if e["arm"] in (PACKED, COMPILED) and _ran(e)]
    if (SMALL, 1) in stock:
        at_one = [stock[SMALL, 1] / e["ms_per_trial_step"] for e in ours if (e["model"], e["batch"]) == (SMALL, 1)]
        if at_one:
            met = "met" if max(at_one) >= 8 else "not met"
            print(f"target, 8x over Trainer at {SMALL} B=1: {met} ({max(at_one):.2f}x)")
    if ours:
        full = max(e["share_of_peak_done"] for e in ours)
        print(f"target, 50 % of the matmul peak when full: {'met' if full >= 0.5 else 'not met'} ({full:.1%} done)")
    alone = {(e["model"], e["batch"]): e["ms_per_trial_step"] for e in ours if e["arm"] == PACKED and e["k"] == 1}
    for e in ours:
        place = (e["model"], e["batch"])
        for what, before in (("Trainer", stock.get(place)), ("packed K=1", alone.get(place))):
            if e["arm"] == PACKED and e["k"] > 1 and before and e["ms_per_trial_step"] > 1.02 * before:
                slower = e["ms_per_trial_step"] / before
                print(f"SLOWER than {what}: {e['model']} B={e['batch']} packed K={e['k']}, {slower:.2f}x the time")


def _ran(entry: dict[str, Any]) -> bool:
    return "failed" not in entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--budget-seconds", type=float, default=540.0, help="skip cells that may end after this")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="continue from these results")
    parser.add_argument("--smoke", action="store_true", help="a tiny shape on any machine, as a quick test")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    arguments = parser.parse_args()
    begun = time.monotonic()
    tokens = 16 if arguments.smoke else 512
    earlier: list[dict[str, Any]] = []
    if arguments.resume is not None:
        earlier = json.loads(arguments.resume.read_text(encoding="utf-8"))["cells"]
    peak = matmul_peak(256 if arguments.smoke else 8192)
    known = about("torch", "transformers", "peft", "accelerate")
    known |= {"matmul_peak_tflops": round(peak / 1e12, 2), "tokens": tokens, "labelled": LABELLED, "rank": LORA.r}
    print(f"{known['hardware']}: bf16 matmul peak {peak / 1e12:.1f} TFLOP/s", flush=True)
    entries = list(earlier)
    done = {(e["model"], e["batch"], e["arm"], e["k"]) for e in earlier}
    left_out = []
    for cell in plan(arguments.smoke):
        if (cell.model, cell.batch, cell.arm, cell.k) in done:
            continue
        if time.monotonic() - begun + cell.guess > arguments.budget_seconds:
            left_out.append(str(cell))
            continue
        entry = with_shares(measure(cell, tokens), peak)
        entries.append(entry)
        save(arguments.out, known | {"left_out": left_out}, cells=entries)
        measured = entry.get("failed") or f"{entry['ms_per_trial_step']:.2f} ms per trial-step"
        print(f"{time.monotonic() - begun:5.0f} s  {cell}: {measured}", flush=True)
    save(arguments.out, known | {"left_out": left_out}, cells=entries)
    report(entries)
    if left_out:
        print(f"skipped for lack of time: {len(left_out)} cells, the first is {left_out[0]}")


if __name__ == "__main__":
    main()
