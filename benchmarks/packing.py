"""ms per trial-step of packed trials against the ways to train them one by one: `python benchmarks/packing.py`.

Eight LoRA trials that differ in learning rate and weight decay, on Llama shapes with random weights and random rows, in
float32. Every arm trains the same trials on the same batches in the same order, with clipping and a cosine schedule;
that their losses agree is checked. Models and adapters are built outside the timing, for every arm alike.

Trainer.train() collects Python's garbage once a trial, a fifth of a second whatever the model: its arm is shown with
that, as a sweep pays it, and from its first step to its last.

Arms are run in turn, in a new order each repeat; ratios are of minima and of medians over the repeats of one run. All
arms have torch's default number of threads, waiting as torch has them wait, but the two processes, which have one each.
A floor that is not met is printed as such, and is no error.
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
from lrsweep.training.packing.pass_size import Widths

LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
SEED, CLIP = 0, 1.0


@dataclass(frozen=True)
class Shape:
    """A Llama and its batch; the last `labelled` of every row's tokens have labels. `steps` a trial.

    Rows have `tokens`, or from `shortest` on, log-uniformly; then they are padded to the batch's longest, as a collator does.
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
    # As many labels as the embedded task has.
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
# (shape, over which arm, how many times faster packed K=8 should be); Trainer's with and without what it does once a trial
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
# PEFT asks transformers under an old name.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


# Models and data


def base_model(shape: Shape, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """The same random weights each time."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).to(dtype)
    if dtype == torch.float64:
        # Llama's own norm computes in float32 whatever it gets: a last bit then becomes a difference of 1e-8.
        for name, module in list(model.named_modules()):
            if isinstance(module, LlamaRMSNorm):
                norm = torch.nn.RMSNorm(module.weight.shape, module.variance_epsilon, dtype=dtype)
                norm.load_state_dict(module.state_dict())
                model.set_submodule(name, norm)
    return model


def peft_model(shape: Shape, dtype: torch.dtype = torch.float32) -> Any:
    """The base with a fresh adapter, the same each time."""
    return copy.deepcopy(_peft_model(shape, dtype))


@functools.lru_cache(maxsize=1)
def _peft_model(shape: Shape, dtype: torch.dtype) -> Any:
    base = base_model(shape, dtype)
    set_seed(SEED)
    return get_peft_model(base, LORA).train()


def make_rows(shape: Shape, steps: int) -> list[dict[str, Tensor]]:
    """One epoch of random rows."""
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(shape.vocabulary, (steps * shape.batch, shape.tokens), generator=generator)
    if shape.shortest:
        span = torch.rand(len(ids), generator=generator) * math.log(shape.tokens / shape.shortest)
        ids = [
            row[:length] for row, length in zip(ids, (shape.shortest * span.exp()).round().int().tolist(), strict=True)
        ]
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
    """As lrsweep's engine makes a pack."""
    model = base_model(shape, dtype)
    longest = lay_end_to_end(model, make_batches(shape, 1)[0])
    return dataclasses.replace(pack_lora(model, LORA, slots), unpadded=longest)


def make_batches(shape: Shape, steps: int) -> list[dict[str, Tensor]]:
    """The rows in Trainer's order."""
    rows = make_rows(shape, steps)
    order = row_batches(len(rows), shape.batch, 1, SEED)
    return [stack([rows[i] for i in next(order)[0]]) for _ in range(steps)]


def warmup(steps: int) -> int:
    return steps // 10


# Arms


def hf_trainers(shape: Shape, steps: int, trials: Sequence[Trial], folder: str) -> list[Trainer]:
    """Stock Trainers: their own AdamW (fused), no evaluation, no saving, no reports, no progress bar."""
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


class Stopwatch(TrainerCallback):
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
    """Seconds of train(); those from first step to last are added to `between`."""
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
    """The model's loss, with logits only where a label counts; in float64 if the model is."""
    causal = model.get_base_model()
    hidden = causal.get_decoder()(input_ids=batch["input_ids"]).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    wanted = labels != -100
    return F.cross_entropy(causal.lm_head(hidden[wanted]), labels[wanted])


def train_bare(
    model: Any, trial: Trial, batches: Sequence[dict[str, Tensor]], *, at_labels: bool, fused: bool = False
) -> Tensor:
    """The loop that a PEFT user writes; its losses [steps]."""
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
            return torch.optim.AdamW(groups, lr=trial.lr, weight_decay=trial.weight_decay)

        optimizer = pack.admit(slot, pack.start(LORA, SEED), make_optimizer, max_norm=CLIP)
        schedules.append(get_scheduler("cosine", optimizer, warmup(steps), steps))
    return schedules


def one_step(pack: Pack, count: int, batch: dict[str, Tensor], width: int) -> Tensor:
    """Gradients of the slots 0..count, `width` of them a pass; their losses [count]."""
    parts = [train_pass(pack, start, stop, join([batch] * (stop - start))) for start, stop in runs(range(count), width)]
    return torch.cat(parts)


def train_packed(
    pack: Pack, schedules: Sequence[Any], batches: Sequence[dict[str, Tensor]], width: int
) -> tuple[Tensor, dict[int, dict[str, Tensor]]]:
    """Trains what `admit` has put in; losses [steps, trials] and the trained weights. The slots are free afterwards."""
    losses, slots = [], range(len(schedules))
    for batch in batches:
        losses.append(one_step(pack, len(slots), batch, width))
        pack.arena.step(slots)
        for schedule in schedules:
            schedule.step()
    weights = {slot: pack.weights(slot) for slot in slots}
    for slot in slots:
        pack.evict(slot)
    return torch.stack(losses), weights


def packed_1_arm(shape: Shape, steps: int) -> Run:
    """One slot, one trial after another."""
    pack, batches = packed(shape, 1), make_batches(shape, steps)
    pack.start(LORA, SEED)  # makes the adapter, as get_peft_model does for the others
    losses = []
    start = time.perf_counter()
    for trial in TRIALS:
        losses.append(train_packed(pack, admit(pack, [trial], steps), batches, 1)[0].mean())
    return time.perf_counter() - start, torch.stack(losses).tolist()


def packed_8_arm(shape: Shape, steps: int, widths_found: list[dict[str, float]]) -> Run:
    """Eight slots; how many of them a pass takes is measured first, as the engine does once a sweep.

    That measurement is not in the arm's time: what it found and the seconds it took are added to `widths_found`.
    """
    pack, batches = packed(shape, len(TRIALS)), make_batches(shape, steps)
    pack.start(LORA, SEED)
    start = time.perf_counter()
    schedules = admit(pack, TRIALS, steps)
    admitted = time.perf_counter() - start

    def try_out(width: int) -> None:
        one_step(pack, width, batches[0], width)
        pack.arena.grads.zero_()

    start = time.perf_counter()
    width = Widths().best("", len(TRIALS), try_out)
    widths_found.append({"width": width, "seconds": time.perf_counter() - start})

    start = time.perf_counter()
    losses, _ = train_packed(pack, schedules, batches, width)
    return admitted + time.perf_counter() - start, losses.mean(0).tolist()


class TwoProcesses:
    """Two processes of one thread, up for the whole run, each training half of the trials on stock Trainers."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes = []
        for _ in range(2):
            ours, theirs = context.Pipe()
            context.Process(target=_half_of_the_trials, args=(theirs,), daemon=True).start()
            self._pipes.append(ours)

    def arm(self, shape: Shape, steps: int) -> Run:
        """Both build their models, and are timed from a common start until the slower one is done."""
        for i, pipe in enumerate(self._pipes):
            pipe.send((shape, steps, TRIALS[i::2]))
        for pipe in self._pipes:
            pipe.recv()
        start = time.perf_counter()
        for pipe in self._pipes:
            pipe.send("go")
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


# Gates


def equivalence(shape: Shape) -> tuple[float, float]:
    """Largest difference between packed K=8 and the bare loop over 10 steps in float64: of a loss, of a trained weight."""
    batches = make_batches(shape, 10)
    pack = packed(shape, len(TRIALS), torch.float64)
    losses, weights = train_packed(pack, admit(pack, TRIALS, 10), batches, len(TRIALS))
    of_losses = of_weights = 0.0
    for slot, trial in enumerate(TRIALS):
        model = peft_model(shape, torch.float64)
        alone = train_bare(model, trial, batches, at_labels=True)
        of_losses = max(of_losses, float((losses[:, slot] - alone).abs().max()))
        trained = {name.replace(".default", ""): weight.detach() for name, weight in model.named_parameters()}
        differences = [(weight - trained[name]).abs().max() for name, weight in weights[slot].items()]
        of_weights = max(of_weights, float(torch.stack(differences).max()))
    return of_losses, of_weights


def nan_isolated(shape: Shape) -> bool:
    """Whether a trial of NaNs leaves every bit of its neighbours' losses and weights as it was."""
    batches = make_batches(shape, 5)
    pack = packed(shape, len(TRIALS))
    sick = 3
    found = []
    for poison in (False, True):
        schedules = admit(pack, TRIALS, 5)
        if poison:
            for weight in pack.arena.read(sick).values():
                weight.fill_(torch.nan)
        found.append(train_packed(pack, schedules, batches, len(TRIALS)))
    (losses, weights), (other_losses, other_weights) = found
    if not other_losses[:, sick].isnan().all():
        return False
    return all(
        torch.equal(losses[:, slot], other_losses[:, slot])
        and all(torch.equal(weight, other_weights[slot][name]) for name, weight in weights[slot].items())
        for slot in range(len(TRIALS))
        if slot != sick
    )


# One run


def measure(shape: Shape, steps: int, repeats: int, two: TwoProcesses, folder: str) -> dict[str, Any]:
    """All arms on one shape, as an entry of the results file."""
    print(f"\n{shape}; {len(TRIALS)} trials of {steps} steps", flush=True)
    of_losses, of_weights = equivalence(shape)
    isolated = nan_isolated(shape)
    held = of_losses <= 1e-10 and isolated
    print(
        f"gates {'held' if held else 'BROKEN'}: packed K=8 against the bare loop in float64, 10 steps: losses differ by "
        f"{of_losses:.1e}, weights by {of_weights:.1e}; a NaN trial {'leaves' if isolated else 'DOES NOT LEAVE'} the "
        "others bitwise unchanged",
        flush=True,
    )
    widths: list[dict[str, float]] = []
    between: list[float] = []
    arms: dict[str, Callable[[int], Run]] = {
        HF: lambda steps: hf_arm(shape, steps, folder, between),
        BARE: lambda steps: bare_arm(shape, steps, at_labels=False),
        BARE_LABELS: lambda steps: bare_arm(shape, steps, at_labels=True),
        BARE_FUSED: lambda steps: bare_arm(shape, steps, at_labels=True, fused=True),
        PACKED_1: lambda steps: packed_1_arm(shape, steps),
        PACKED_8: lambda steps: packed_8_arm(shape, steps, widths),
        TWO: lambda steps: two.arm(shape, steps),
    }
    for arm in arms.values():
        arm(2)
    widths.clear()
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
    passes = ", ".join(f"{entry['width']:.0f}" for entry in widths)
    seconds = statistics.median(entry["seconds"] for entry in widths)
    print(f"trials a pass, as measured in each repeat: {passes}; finding out took {seconds:.2f} s, once a sweep")
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
        "trials_per_pass": [int(entry["width"]) for entry in widths],
        "seconds_to_find_them": [round(entry["seconds"], 3) for entry in widths],
        "float64_difference": {"loss": of_losses, "weight": of_weights},
        "nan_isolated": isolated,
        "losses_agree_within": spread,
    }


def floors(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each floor whose shape was run; met means by minima and by medians."""
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
        help=f"some of {', '.join(names)}; the file keeps the others",
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
