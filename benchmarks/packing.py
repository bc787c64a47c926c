"""Compares packed trials with ways to train them one by one, in ms per trial-step: `python benchmarks/packing.py`.

Trains eight LoRA trials that differ in learning rate and weight decay, on Llama shapes with random weights and random
rows, in float32. Every arm trains the same trials on the same batches in the same order, with clipping and a cosine
schedule; the script prints how far their losses differ. Building models and adapters is not timed, in any arm.

Trainer.train() runs Python's garbage collector once per trial, which takes a fifth of a second for any model. Its arm
is shown with that time, which a sweep has to pay, and also from its first step to its last.

Arms run in turn, in a new random order in each repeat; ratios are of the minima and of the medians over the repeats.
All arms use torch's default number of threads and OMP_WAIT_POLICY, except the two processes, which have one thread
each. A floor that is not met is printed as such, and is no error.
"""

import argparse
import copy
import dataclasses
import functools
import gc
import json
import math
import multiprocessing
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, about, save, table
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
    set_seed,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lrsweep.training.data.row_sampler import row_batches
from lrsweep.training.packing import Pack, join, lay_end_to_end, pack_lora, runs, train_pass
from lrsweep.training.packing.pass_size import PassSizes

LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
SEED, CLIP = 0, 1.0


@dataclass(frozen=True)
class Shape:
    """A Llama and its batch.

    Attributes:
        name: Its name.
        layers: Decoder layers.
        hidden: Width.
        intermediate: Width of the MLP.
        vocabulary: Tokens in the vocabulary.
        batch: Rows per batch.
        tokens: Tokens per row, or of the longest rows if `shortest` is set.
        steps: Default number of steps per trial.
        labelled: The share of each row's tokens, the last ones, that have labels.
        tied: Whether the embedding and the output layer share their weight.
        heads: Heads of the queries.
        kv_heads: Heads of the keys and values.
        shortest: If set, row lengths are log-uniform from here to `tokens`, and rows are padded to the batch's longest.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    batch: int
    tokens: int
    steps: int
    labelled: float = 0.5
    tied: bool = False
    heads: int = 4
    kv_heads: int = 2
    shortest: int | None = None

    def __str__(self) -> str:
        lengths = f"{self.shortest}..{self.tokens}" if self.shortest else str(self.tokens)
        size = f"{self.layers} layers h={self.hidden} V={self.vocabulary} b{self.batch} T{lengths}"
        return f"{self.name}: {size}, {self.labelled:.0%} labels"


SHAPES = (
    Shape("deep", 24, 64, 128, 512, 1, 32, steps=10),
    Shape("small", 2, 64, 128, 512, 2, 64, steps=20),
    Shape("middle", 8, 256, 512, 4096, 1, 64, steps=10),
    Shape("control", 8, 256, 512, 4096, 4, 128, steps=4),
    Shape("embedded", 4, 128, 352, 2048, 8, 64, steps=8, tied=True),
    # With as many labels as the embedded task.
    Shape("embedded-quarter", 4, 128, 352, 2048, 8, 64, steps=8, labelled=0.25, tied=True),
    Shape("unequal", 4, 128, 352, 2048, 8, 256, steps=10, tied=True, shortest=16),
)


@dataclass(frozen=True)
class Trial:
    lr: float
    weight_decay: float


TRIALS = tuple(Trial(lr=1e-4 * 1.6**i, weight_decay=0.01 * (i % 3)) for i in range(8))

HF = "HF Trainer"
HF_STEPS = "HF Trainer, first step to last"
BARE = "bare loop"
BARE_LABELS = "bare loop, logits at labels"
BARE_FUSED = "bare loop, logits at labels, fused AdamW"
PACKED_1 = "packed K=1"
PACKED_8 = "packed K=8"
TWO = "2 HF processes"
# (shape, arm, how many times faster packed K=8 should be); for Trainer with and without its time once per trial.
FLOORS = (
    ("deep", HF, 5.0),
    ("deep", HF_STEPS, 5.0),
    ("deep", BARE, 3.0),
    ("small", HF, 3.0),
    ("small", HF_STEPS, 3.0),
    ("middle", HF, 3.0),
    ("middle", HF_STEPS, 3.0),
    ("control", BARE, 0.95),
)

# What an arm returns: seconds for all trials, and each trial's mean loss.
Run = tuple[float, list[float]]
# PEFT still uses transformers' old name.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


# Models and data


def base_model(shape: Shape, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Returns a base model; its random weights are always the same."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).to(dtype)
    if dtype == torch.float64:
        # Llama's own norm always computes in float32, which turns a difference of one bit into 1e-8.
        for name, module in list(model.named_modules()):
            if isinstance(module, LlamaRMSNorm):
                norm = torch.nn.RMSNorm(module.weight.shape, module.variance_epsilon, dtype=dtype)
                norm.load_state_dict(module.state_dict())
                model.set_submodule(name, norm)
    return model


def peft_model(shape: Shape, dtype: torch.dtype = torch.float32) -> Any:
    """Returns the base with a new adapter, which is always the same."""
    return copy.deepcopy(_peft_model(shape, dtype))


@functools.lru_cache(maxsize=1)
def _peft_model(shape: Shape, dtype: torch.dtype) -> Any:
    base = base_model(shape, dtype)
    set_seed(SEED)
    return get_peft_model(base, LORA).train()


def make_rows(shape: Shape, steps: int) -> list[dict[str, Tensor]]:
    """Returns one epoch of random rows."""
    generator = torch.Generator().manual_seed(SEED)
    ids = list(torch.randint(shape.vocabulary, (steps * shape.batch, shape.tokens), generator=generator))
    if shape.shortest:
        span = torch.rand(len(ids), generator=generator) * math.log(shape.tokens / shape.shortest)
        lengths = (shape.shortest * span.exp()).round().int().tolist()
        ids = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    rows = [{"input_ids": row, "labels": row.clone()} for row in ids]
    for row in rows:
        row["labels"][: len(row["labels"]) - round(len(row["labels"]) * shape.labelled)] = -100
        if shape.shortest:
            row["attention_mask"] = torch.ones_like(row["input_ids"])
    return rows


def stack(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        key: pad_sequence([row[key] for row in rows], batch_first=True, padding_value=-100 if key == "labels" else 0)
        for key in rows[0]
    }


def packed(shape: Shape, slots: int, dtype: torch.dtype = torch.float32) -> Pack:
    """Returns a pack, built as lrsweep's engine does."""
    model = base_model(shape, dtype)
    longest = lay_end_to_end(model, make_batches(shape, 1)[0])
    return dataclasses.replace(pack_lora(model, LORA, slots), unpadded=longest, maskless=longest)


def make_batches(shape: Shape, steps: int) -> list[dict[str, Tensor]]:
    """Returns batches of the rows in Trainer's order."""
    rows = make_rows(shape, steps)
    numbers = row_batches(len(rows), shape.batch, 1, SEED)
    return [stack([rows[i] for i in next(numbers)[0]]) for _ in range(steps)]


def warmup(steps: int) -> int:
    return steps // 10


# Arms


def hf_trainers(shape: Shape, steps: int, trials: Sequence[Trial], folder: str) -> list[Trainer]:
    """Returns stock Trainers: with their own AdamW (fused), without evaluation, saving, reports and progress bar."""
    trainers = []
    for trial in trials:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=shape.batch,
            learning_rate=trial.lr,
            weight_decay=trial.weight_decay,
            max_grad_norm=CLIP,
            lr_scheduler_type="cosine",
            warmup_steps=warmup(steps),
            seed=SEED,
            eval_strategy="no",
            save_strategy="no",
            logging_steps=10**9,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        rows: Any = make_rows(shape, steps)
        trainer = Trainer(model=peft_model(shape), args=arguments, train_dataset=rows, data_collator=stack)
        trainer.remove_callback(PrinterCallback)
        trainers.append(trainer)
    return trainers


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Adds up the time from the first step to the last of every trial."""

    def __init__(self) -> None:
        self.seconds = self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == state.max_steps:
            self.seconds += time.perf_counter() - self._start


def hf_arm(shape: Shape, steps: int, folder: str, between: list[float]) -> Run:
    """Times train(); appends the seconds from first step to last to `between`."""
    trainers = hf_trainers(shape, steps, TRIALS, folder)
    watch = Stopwatch()
    for trainer in trainers:
        trainer.add_callback(watch)
    start = time.perf_counter()
    losses = [trainer.train().training_loss for trainer in trainers]
    seconds = time.perf_counter() - start
    between.append(watch.seconds)
    return seconds, losses


def label_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Returns the model's loss, with logits only at labels; in float64 if the model is."""
    causal = model.get_base_model()
    hidden = causal.get_decoder()(input_ids=batch["input_ids"]).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    wanted = labels != -100
    return F.cross_entropy(causal.lm_head(hidden[wanted]), labels[wanted])


def train_bare(
    model: Any, trial: Trial, batches: Sequence[dict[str, Tensor]], *, at_labels: bool, fused: bool = False
) -> Tensor:
    """Trains with the loop that a PEFT user would write; returns its losses [steps]."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=trial.lr, weight_decay=trial.weight_decay, fused=fused or None)
    schedule = get_scheduler("cosine", optimizer, warmup(len(batches)), len(batches))
    losses = []
    for batch in batches:
        loss = label_loss(model, batch) if at_labels else model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def bare_arm(shape: Shape, steps: int, *, at_labels: bool, fused: bool = False) -> Run:
    models, batches = [peft_model(shape) for _ in TRIALS], make_batches(shape, steps)
    start = time.perf_counter()
    losses = [
        train_bare(model, trial, batches, at_labels=at_labels, fused=fused)
        for model, trial in zip(models, TRIALS, strict=True)
    ]
    return time.perf_counter() - start, torch.stack(losses).mean(1).tolist()


def admit(pack: Pack, trials: Sequence[Trial], steps: int) -> list[Any]:
    """Puts the trials into the slots 0, 1, ...; returns their schedules."""
    schedules = []
    for slot, trial in enumerate(trials):

        def make_optimizer(groups: Any, trial: Trial = trial) -> torch.optim.Optimizer:
            # As in the engine, and in stock Trainer.
            return torch.optim.AdamW(groups, lr=trial.lr, weight_decay=trial.weight_decay, fused=True)

        optimizer = pack.admit(slot, pack.start(LORA, SEED), make_optimizer, max_norm=CLIP)
        schedules.append(get_scheduler("cosine", optimizer, warmup(steps), steps))
    return schedules


def one_step(pack: Pack, count: int, batch: dict[str, Tensor], size: int) -> Tensor:
    """Computes the gradients of the slots 0..count in passes of `size` trials; returns their losses [count]."""
    parts = [train_pass(pack, start, stop, join([batch] * (stop - start))) for start, stop in runs(range(count), size)]
    return torch.cat(parts)


def train_packed(
    pack: Pack, schedules: Sequence[Any], batches: Sequence[dict[str, Tensor]], size: int
) -> tuple[Tensor, dict[int, dict[str, Tensor]]]:
    """Trains the admitted trials and frees their slots; returns losses [steps, trials] and trained weights by slot."""
    losses, slots = [], range(len(schedules))
    for batch in batches:
        losses.append(one_step(pack, len(slots), batch, size))
        pack.arena.step(slots)
        for schedule in schedules:
            schedule.step()
    weights = {slot: pack.weights(slot) for slot in slots}
    for slot in slots:
        pack.evict(slot)
    return torch.stack(losses), weights


def packed_1_arm(shape: Shape, steps: int) -> Run:
    """Times one slot, one trial after another."""
    pack, batches = packed(shape, 1), make_batches(shape, steps)
    pack.start(LORA, SEED)  # creates the adapter, as get_peft_model does in the other arms
    losses = []
    start = time.perf_counter()
    for trial in TRIALS:
        losses.append(train_packed(pack, admit(pack, [trial], steps), batches, 1)[0].mean())
    return time.perf_counter() - start, torch.stack(losses).tolist()


def packed_8_arm(shape: Shape, steps: int, sizes_found: list[dict[str, float]]) -> Run:
    """Times eight slots. The pass size is measured first, as the engine does once per sweep.

    That measurement is not part of the arm's time: its result and its seconds are appended to `sizes_found`.
    """
    pack, batches = packed(shape, len(TRIALS)), make_batches(shape, steps)
    pack.start(LORA, SEED)
    start = time.perf_counter()
    schedules = admit(pack, TRIALS, steps)
    admitted = time.perf_counter() - start

    def one_pass(size: int) -> None:
        one_step(pack, size, batches[0], size)
        pack.arena.grads.zero_()

    start = time.perf_counter()
    size = PassSizes().fastest("", len(TRIALS), one_pass)
    sizes_found.append({"size": size, "seconds": time.perf_counter() - start})

    start = time.perf_counter()
    losses, _ = train_packed(pack, schedules, batches, size)
    return admitted + time.perf_counter() - start, losses.mean(0).tolist()


class TwoProcesses:
    """Two processes with one thread each; each trains half of the trials with stock Trainers. Started once per run."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes = []
        for _ in range(2):
            ours, theirs = context.Pipe()
            context.Process(target=_half_of_the_trials, args=(theirs,), daemon=True).start()
            self._pipes.append(ours)

    def arm(self, shape: Shape, steps: int) -> Run:
        """Times both from a common start, after they have built their models, until the slower one is done."""
        for i, pipe in enumerate(self._pipes):
            pipe.send((shape, steps, TRIALS[i::2]))
        for pipe in self._pipes:
            pipe.recv()
        start = time.perf_counter()
        for pipe in self._pipes:
            pipe.send("start")
        halves = [pipe.recv() for pipe in self._pipes]
        seconds = time.perf_counter() - start
        return seconds, [loss for pair in zip(*halves, strict=True) for loss in pair]


def _half_of_the_trials(pipe: Connection) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        while True:
            try:
                shape, steps, trials = pipe.recv()
            except EOFError:
                return
            trainers = hf_trainers(shape, steps, trials, folder)
            pipe.send("ready")
            pipe.recv()
            pipe.send([trainer.train().training_loss for trainer in trainers])


# Checks


def equivalence(shape: Shape) -> tuple[float, float]:
    """Compares packed K=8 with the bare loop over 10 steps in float64.

    Returns:
        The largest difference between losses, and between trained weights.
    """
    batches = make_batches(shape, 10)
    pack = packed(shape, len(TRIALS), torch.float64)
    losses, weights = train_packed(pack, admit(pack, TRIALS, 10), batches, len(TRIALS))
    of_losses = of_weights = 0.0
    for slot, trial in enumerate(TRIALS):
        model = peft_model(shape, torch.float64)
        bare = train_bare(model, trial, batches, at_labels=True)
        of_losses = max(of_losses, float((losses[:, slot] - bare).abs().max()))
        trained = {name.replace(".default", ""): weight.detach() for name, weight in model.named_parameters()}
        differences = [(weight - trained[name]).abs().max() for name, weight in weights[slot].items()]
        of_weights = max(of_weights, float(torch.stack(differences).max()))
    return of_losses, of_weights


def nan_isolated(shape: Shape) -> bool:
    """Returns whether a trial with NaN weights leaves every bit of the others' losses and weights unchanged."""
    batches = make_batches(shape, 5)
    pack = packed(shape, len(TRIALS))
    poisoned = 3
    found = []
    for poison in (False, True):
        schedules = admit(pack, TRIALS, 5)
        if poison:
            for weight in pack.arena.read(poisoned).values():
                weight.fill_(torch.nan)
        found.append(train_packed(pack, schedules, batches, len(TRIALS)))
    (losses, weights), (other_losses, other_weights) = found
    if not other_losses[:, poisoned].isnan().all():
        return False
    return all(
        torch.equal(losses[:, slot], other_losses[:, slot])
        and all(torch.equal(weight, other_weights[slot][name]) for name, weight in weights[slot].items())
        for slot in range(len(TRIALS))
        if slot != poisoned
    )


# One run


def measure(shape: Shape, steps: int, repeats: int, two: TwoProcesses, folder: str) -> dict[str, Any]:
    """Runs all arms on one shape; returns an entry of the results file."""
    print(f"\n{shape}; {len(TRIALS)} trials of {steps} steps", flush=True)
    of_losses, of_weights = equivalence(shape)
    isolated = nan_isolated(shape)
    checks = "passed" if of_losses <= 1e-10 and isolated else "FAILED"
    nan = "leaves" if isolated else "DOES NOT LEAVE"
    print(
        f"checks {checks}: packed K=8 against the bare loop in float64, 10 steps: losses differ by {of_losses:.1e}, "
        f"weights by {of_weights:.1e}; a NaN trial {nan} the others bitwise unchanged",
        flush=True,
    )
    sizes: list[dict[str, float]] = []
    between: list[float] = []
    arms: dict[str, Callable[[int], Run]] = {
        HF: lambda steps: hf_arm(shape, steps, folder, between),
        BARE: lambda steps: bare_arm(shape, steps, at_labels=False),
        BARE_LABELS: lambda steps: bare_arm(shape, steps, at_labels=True),
        BARE_FUSED: lambda steps: bare_arm(shape, steps, at_labels=True, fused=True),
        PACKED_1: lambda steps: packed_1_arm(shape, steps),
        PACKED_8: lambda steps: packed_8_arm(shape, steps, sizes),
        TWO: lambda steps: two.arm(shape, steps),
    }
    for arm in arms.values():
        arm(2)
    sizes.clear()
    between.clear()
    ms: dict[str, list[float]] = {name: [] for name in arms}
    losses: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name in random.sample(list(arms), len(arms)):
            gc.collect()
            seconds, losses[name] = arms[name](steps)
            ms[name].append(1000 * seconds / len(TRIALS) / steps)
    by_steps = [1000 * seconds / len(TRIALS) / steps for seconds in between]
    ms = {HF: ms.pop(HF), HF_STEPS: by_steps, **ms}
    spread = max(abs(loss / of_hf - 1) for arm in losses.values() for loss, of_hf in zip(arm, losses[HF], strict=True))
    lows = {name: min(values) for name, values in ms.items()}
    middles = {name: statistics.median(values) for name, values in ms.items()}

    rows = [
        [
            name,
            f"{lows[name]:.2f}",
            f"{middles[name]:.2f}",
            f"{lows[name] / lows[PACKED_8]:.2f}x",
            f"{middles[name] / middles[PACKED_8]:.2f}x",
        ]
        for name in ms
    ]
    header = ["ms per trial-step", "min", "median", "packed K=8 is faster by (min)", "(median)"]
    print(table(header, rows))
    passes = ", ".join(f"{entry['size']:.0f}" for entry in sizes)
    seconds = statistics.median(entry["seconds"] for entry in sizes)
    print(f"trials per pass, as measured in each repeat: {passes}; measuring took {seconds:.2f} s, once per sweep")
    print(f"mean losses of all arms agree within {spread:.1e} of Trainer's")
    return {
        "shape": shape.name,
        "about": str(shape),
        "steps": steps,
        "ms_per_trial_step": {
            name: {"min": round(lows[name], 3), "median": round(middles[name], 3), "all": [round(v, 3) for v in values]}
            for name, values in ms.items()
        },
        "packed_8_faster_by": {
            name: {"min": round(lows[name] / lows[PACKED_8], 3), "median": round(middles[name] / middles[PACKED_8], 3)}
            for name in ms
            if name != PACKED_8
        },
        "trials_per_pass": [int(entry["size"]) for entry in sizes],
        "seconds_to_find_them": [round(entry["seconds"], 3) for entry in sizes],
        "float64_difference": {"loss": of_losses, "weight": of_weights},
        "nan_isolated": isolated,
        "losses_agree_within": spread,
    }


def floors(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns each floor whose shape was run; it is met if both the ratio of minima and that of medians reach it."""
    found = []
    for name, arm, factor in FLOORS:
        for entry in (entry for entry in entries if entry["shape"] == name):
            ratio = entry["packed_8_faster_by"][arm]
            reached = [key for key in ("min", "median") if ratio[key] >= factor]
            verdict = {0: "not met", 1: f"met by the {reached[0] if reached else ''} only", 2: "met"}[len(reached)]
            found.append({"shape": name, "over": arm, "floor": factor, **ratio, "verdict": verdict})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, help="steps of each trial (default: by shape, 4 to 20)")
    parser.add_argument("--repeats", type=int, default=4)
    names = [shape.name for shape in SHAPES]
    parser.add_argument(
        "--only",
        choices=names,
        nargs="+",
        metavar="SHAPE",
        help=f"only these of {', '.join(names)}; the results file keeps the others",
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "packing.json")
    arguments = parser.parse_args()
    random.seed(SEED)
    known = about("torch", "transformers", "peft", "accelerate")
    known |= {"trials": len(TRIALS), "repeats": arguments.repeats}
    print(f"{known['hardware']}, {known['threads']} threads")
    before = json.loads(arguments.out.read_text())["shapes"] if arguments.only and arguments.out.exists() else []
    entries: list[dict[str, Any]] = [entry for entry in before if entry["shape"] not in arguments.only]
    two = TwoProcesses()
    with tempfile.TemporaryDirectory() as folder:
        for shape in SHAPES:
            if arguments.only is None or shape.name in arguments.only:
                steps = arguments.steps or shape.steps
                entries.append(measure(shape, steps, arguments.repeats, two, folder))
                save(arguments.out, known, floors=floors(entries), shapes=entries)
    print()
    for floor in floors(entries):
        print("floor, {shape}: {floor}x over {over}: {verdict} (min {min}x, median {median}x)".format(**floor))
    print(f"\nwritten to {arguments.out.name}")


if __name__ == "__main__":
    main()
