"""How fast packed trials are on this device, against stock Trainer, a tuned one, and two processes.

The shapes of Qwen2.5-0.5B and Llama-3.1-8B with random bf16 weights; LoRA r=16 on all linear layers, in float32; rows
of 512 random tokens, the second half with labels; no activation checkpointing. Downloads nothing.

Arms: stock Trainer (bf16, SDPA, fused AdamW); the same, tuned (compiled decoder, logits at labels only, no check for
NaN); two processes with a stock Trainer each; packed, K trials, with the pass size measured as the engine does, and
CUDA graphs where they are faster; the same without graphs; the same with graphs and the kernels of a long training;
packed with a compiled decoder, K trials per pass. `--slow` runs the compiled decoder, and the tuned Trainer at the
shapes at which it is no gate; without it all others run. The most informative cells come first.

Shares of the measured matmul peak count 4P FLOPs per token (P: parameters of the linear layers and the output layer;
the base's forward pass and its gradient of activations, without attention and adapters). `done` counts the output layer
only where the arm computes it.
"""

import dataclasses
import functools
import multiprocessing
import queue
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
    set_seed,
)

from gpu.models import (
    CONFIGS,
    DEVICE,
    ENOUGH_SECONDS,
    LARGE,
    MOST,
    ON_GPU,
    SEED,
    SMALL,
    TINY,
    WARM,
    clock,
    finish,
    matmul_peak,
    random_model,
    timed,
)
from gpu.steps import Found, Step, arguments_of_child, run_steps
from lrsweep.config.trial_schema import OptimizerConfig
from lrsweep.training.optimizer import optimizer_class
from lrsweep.training.packing import Pack, join, pack_lora, runs
from lrsweep.training.packing.graphs import EagerRunner, GraphRunner, PassRunner
from lrsweep.training.packing.pass_size import PassSizes
from lrsweep.training.packing.unpadded import lay_end_to_end

# PEFT still uses transformers' old name.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
LABELLED, LR, CLIP = 0.5, 1e-4, 1.0

TRAINER, TUNED, PROCESSES = "Trainer", "tuned Trainer", "Trainer processes"
PACKED, EAGER, KERNELS, COMPILED = "packed", "packed without graphs", "packed with kernels", "packed, compiled"


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
        packed = 8 + self.k / 3
        guesses = {TRAINER: 10, TUNED: 60, PROCESSES: 40, PACKED: packed, EAGER: packed, KERNELS: 30 + packed}
        guesses |= {COMPILED: 60}
        seconds = guesses[self.arm]
        return seconds * (2 if self.model == LARGE else 1)


def plan(smoke: bool, slow: bool) -> list[Cell]:
    """The cells to measure, the most informative first."""
    if smoke:
        arms = [(COMPILED, 2)] if slow else [(TRAINER, 1), (PACKED, 1), (EAGER, 4), (PACKED, 4), (PROCESSES, 2)]
        return [Cell(TINY, 2, arm, k) for arm, k in arms]
    if slow:
        rows = ((SMALL, 8), (SMALL, 2), (LARGE, 8))
        return [
            Cell(SMALL, 1, COMPILED, 8),
            *[Cell(model, batch, arm, k) for model, batch in rows for arm, k in ((TUNED, 1), (COMPILED, 8))],
        ]
    return [
        *[Cell(SMALL, 1, arm, k) for arm, k in ((TRAINER, 1), (KERNELS, 8))],
        *[Cell(SMALL, 8, arm, k) for arm, k in ((TRAINER, 1), (KERNELS, 8))],
        # The control: no gain is expected, and there must be no loss.
        *[Cell(LARGE, 8, arm, k) for arm, k in ((TRAINER, 1), (PACKED, 8))],
        *[Cell(SMALL, 1, arm, k) for arm, k in ((TUNED, 1), (PACKED, 8), (PACKED, 32), (PROCESSES, 2))],
        Cell(SMALL, 8, PACKED, 8),
        *[Cell(SMALL, 2, arm, k) for arm, k in ((TRAINER, 1), (PACKED, 8))],
        Cell(LARGE, 8, KERNELS, 8),
        *[Cell(SMALL, 1, arm, k) for arm, k in ((EAGER, 8), (PACKED, 1), (EAGER, 1))],
        *[Cell(model, 8, PACKED, 1) for model in (SMALL, LARGE)],
        *[Cell(SMALL, batch, PACKED, 32) for batch in (8, 2)],
        *[Cell(LARGE, 1, arm, k) for arm, k in ((TRAINER, 1), (PACKED, 8))],
    ]


# Models and data


def base_model(name: str) -> Any:
    return random_model(CONFIGS[name])


def make_rows(name: str, count: int, tokens: int) -> list[dict[str, Tensor]]:
    """Returns random rows; the last tokens of each, a share of LABELLED, have labels."""
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(CONFIGS[name].vocab_size, (count, tokens), generator=generator)
    labels = ids.clone()
    labels[:, : tokens - round(tokens * LABELLED)] = -100
    return [{"input_ids": row, "labels": wanted} for row, wanted in zip(ids, labels, strict=True)]


def stack(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


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
    found = _answers(processes, answers)
    for process in processes:
        process.join()
    errors = sorted({answer for answer in found if isinstance(answer, str)})
    if errors:
        raise (torch.OutOfMemoryError if "OutOfMemoryError" in errors else RuntimeError)("; ".join(errors))
    start, stop = min(answer[0] for answer in found), max(answer[1] for answer in found)
    steps = sum(answer[2] for answer in found)
    return (stop - start) / steps, {"peak_memory_gb": round(sum(answer[3] for answer in found), 2)}


def _answers(processes: Sequence[Any], answers: Any) -> list[Any]:
    """What each process says. One that dies without a word is noticed at once, and the others are ended."""
    found: list[Any] = []
    while len(found) < len(processes):
        try:
            found.append(answers.get(timeout=0.2))
        except queue.Empty:
            dead = [process.exitcode for process in processes if process.exitcode]
            if dead:
                for process in processes:
                    process.kill()
                raise RuntimeError(f"a process died: exit code {dead[0]}") from None
    return found


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


def make_pack(cell: Cell, rows: dict[str, Tensor]) -> Pack:
    """A pack of `k` free slots, prepared as the engine prepares it."""
    model = base_model(cell.model)
    longest = lay_end_to_end(model, rows | {"attention_mask": torch.ones_like(rows["input_ids"])})
    pack = pack_lora(model, LORA, cell.k, compute=torch.bfloat16, compile_kernels=cell.arm == KERNELS)
    return dataclasses.replace(pack, unpadded=longest, maskless=longest)


def admit(pack: Pack, k: int) -> list[Any]:
    """Fills the slots; returns the trials' schedules."""
    schedules = []
    for slot in range(k):

        def make_optimizer(groups: Any, lr: float = LR * (1 + slot / 8)) -> torch.optim.Optimizer:
            # As the engine builds it.
            kind, arguments = optimizer_class(OptimizerConfig(name="adamw", lr=lr, weight_decay=0.01))
            return kind(groups, **arguments, weight_decay=0.01)  # type: ignore[call-arg]

        optimizer = pack.admit(slot, pack.start(LORA, SEED), make_optimizer, max_norm=CLIP)
        schedules.append(get_scheduler("cosine", optimizer, 0, 10_000))
    return schedules


def gradients(runner: PassRunner, k: int, batch: dict[str, Tensor], size: int) -> Tensor:
    """Computes the gradients of the slots 0..k in passes of `size` trials; returns their losses [k]."""
    return torch.cat(
        [runner.train(start, stop, join([batch] * (stop - start))) for start, stop in runs(range(k), size)]
    )


def packed_arm(cell: Cell, tokens: int) -> tuple[float, dict[str, Any]]:
    """Times passes of the fastest size, which is the arm's time, and one pass of all trials if it fits in memory."""
    batch = stack(make_rows(cell.model, cell.batch, tokens))
    pack = make_pack(cell, batch)
    schedules = admit(pack, cell.k)
    eager = EagerRunner(pack)
    runner = eager if cell.arm == EAGER else GraphRunner(pack)

    def step(size: int) -> None:
        gradients(runner, cell.k, batch, size)
        pack.arena.step(range(cell.k))
        for schedule in schedules:
            schedule.step()

    def one_pass(size: int) -> None:
        gradients(eager, size, batch, size)

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
    if isinstance(runner, GraphRunner):
        extra["graphs"] = runner.recorded
    return seconds[size], extra


def compiled_arm(cell: Cell, tokens: int) -> tuple[float, dict[str, Any]]:
    """Times passes of all K trials with a compiled decoder, and compares its gradients with the eager ones."""
    batch = stack(make_rows(cell.model, cell.batch, tokens))
    pack = make_pack(cell, batch)
    schedules = admit(pack, cell.k)
    for slot in range(cell.k):  # with B at zero, as it starts, A has no gradient to compare
        for name, weight in pack.arena.read(slot).items():
            if ".lora_B." in name:
                weight.normal_(std=0.02)
    runner = EagerRunner(pack)
    eager_losses = gradients(runner, cell.k, batch, cell.k)
    eager = pack.arena.grads.clone()
    pack.arena.grads.zero_()
    # For a tiny shape it is enough to see that the decoder can be traced.
    backend = "eager" if cell.model == TINY else "inductor"
    pack.model.get_decoder().compile(dynamic=False, backend=backend)
    start = clock()
    losses = gradients(runner, cell.k, batch, cell.k)
    extra = {
        "seconds_to_compile": round(clock() - start, 1),
        "gradients_apart": float((pack.arena.grads - eager).norm() / eager.norm()),
        "losses_apart": float((losses / eager_losses - 1).abs().max()),
    }
    del eager
    pack.arena.grads.zero_()

    def step() -> None:
        gradients(runner, cell.k, batch, cell.k)
        pack.arena.step(range(cell.k))
        for schedule in schedules:
            schedule.step()

    return timed(step) / cell.k, extra


# One run


def peak_memory() -> float:
    """Returns the most GB ever allocated."""
    return torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else 0.0


def measure(cell: Cell, tokens: int, peak: float) -> Found:
    """A cell's entry; out of memory is a result, too."""
    entry: Found = {"model": cell.model, "batch": cell.batch, "arm": cell.arm, "k": cell.k, "ok": None}
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    torch.compiler.reset()
    try:
        if cell.arm in (PACKED, EAGER, KERNELS):
            seconds, extra = packed_arm(cell, tokens)
        elif cell.arm == COMPILED:
            seconds, extra = compiled_arm(cell, tokens)
        elif cell.arm == PROCESSES:
            seconds, extra = processes_arm(cell, tokens)
        else:
            seconds, extra = trainer_arm(cell, tokens, tuned=cell.arm == TUNED)
    except torch.OutOfMemoryError:
        return entry | {"failed": "out of memory"}
    entry |= {
        "ms_per_trial_step": round(1000 * seconds, 3),
        "tokens_per_second": round(cell.batch * tokens / seconds),
        "peak_memory_gb": round(peak_memory(), 2),
        **extra,
    }
    return with_shares(entry, peak)


def with_shares(entry: Found, peak: float) -> Found:
    """Adds the shares of the matmul peak to an entry."""
    linear, head = sizes(entry["model"])
    flops = 4 * entry["tokens_per_second"] / peak
    computed = 1.0 if entry["arm"] in (TRAINER, PROCESSES) else LABELLED
    return entry | {
        "share_of_peak": round(flops * (linear + head), 4),
        "share_of_peak_done": round(flops * (linear + computed * head), 4),
    }


def main() -> None:
    slow = "--slow" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--slow"]
    arguments = arguments_of_child()
    tokens = 16 if arguments.smoke else 512
    peak = functools.cache(lambda: matmul_peak(256 if arguments.smoke else 8192))
    steps = [] if slow else [Step("matmul peak", 30, lambda: {"tflops": round(peak() / 1e12, 3)})]
    for cell in plan(arguments.smoke, slow):
        # Three times the guess: what hangs must not take the time of the others.
        run = functools.partial(lambda cell: measure(cell, tokens, peak()), cell)
        steps.append(Step(str(cell), max(60.0, 3 * cell.guess), run, 0.0 if arguments.smoke else cell.guess))
    run_steps(steps, arguments)


if __name__ == "__main__":
    main()
