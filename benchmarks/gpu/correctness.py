"""Whether packed trials are right on this device: against a stock PEFT loop, and whatever their neighbours do.

A check that fails is repeated with ever less (fewer trials, steps, layers, rows, tokens) while it still fails; what is
left is the smallest reproduction.
"""

import contextlib
import dataclasses
import functools
import json
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Qwen2Config, Trainer, get_scheduler, set_seed

from gpu.models import DEVICE, ON_GPU, finish, random_model
from gpu.steps import Found, Step, arguments_of_child, run_steps
from lrsweep.files import checkpoint
from lrsweep.files.checkpoint import Checkpoint
from lrsweep.training.packing import Pack, join, kernels, lay_end_to_end, pack_lora, pack_weights, runs, train_pass
from lrsweep.training.packing.fused import rotate_pair
from lrsweep.training.packing.graphs import GraphRunner, PassRunner

# PEFT still uses transformers' old name.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

# The worst relative difference of two losses that differ by rounding only.
GATES = {"float32": 1e-4, "bfloat16": 0.02}
REDUCING_SECONDS = 45.0


@dataclass(frozen=True)
class Case:
    """What is trained: one batch again and again, so that the loss has to fall.

    Attributes:
        dtype: Of the base and of the products.
        mode: lora, or full fine-tuning.
        trials: Trials in the pack.
        steps: Optimizer steps.
        layers: Decoder layers.
        rows: Rows of a trial's batch.
        tokens: Tokens of a row.
        shortest: The shortest row; rows are as long as `tokens` if it is the same.
        dropout: LoRA's dropout.
        activation_checkpointing: Recomputes activations in the backward pass.
        hidden: The model's width.
        kernels: With the kernels of a long training.
    """

    dtype: str = "float32"
    mode: str = "lora"
    trials: int = 4
    steps: int = 12
    layers: int = 4
    rows: int = 4
    tokens: int = 96
    shortest: int = 96
    dropout: float = 0.0
    activation_checkpointing: bool = False
    hidden: int = 256
    kernels: bool = False

    @property
    def model(self) -> Qwen2Config:
        return Qwen2Config(
            vocab_size=16 * self.hidden,
            hidden_size=self.hidden,
            intermediate_size=11 * self.hidden // 4,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def gate(self) -> float:
        return GATES[self.dtype]

    def lora(self) -> LoraConfig:
        return LoraConfig(
            r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=self.dropout
        )

    def optimizer(self, trial: int) -> dict[str, Any]:
        # At ten times these rates training is chaotic: a last bit becomes a hundredth within twenty steps.
        lr = 10 ** (-3.5 + trial / 4) * (0.3 if self.mode == "full" else 1)
        betas = (0.9, 0.999) if trial % 2 else (0.8, 0.95)
        return {"lr": lr, "betas": betas, "weight_decay": 0.1 * (trial % 2), "fused": ON_GPU or None}

    def batch(self) -> dict[str, Tensor]:
        """Rows padded on the right; the first half of each has no labels."""
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(1, self.model.vocab_size, (self.rows, self.tokens), generator=generator)
        lengths = torch.randint(self.shortest, self.tokens + 1, (self.rows,), generator=generator)
        place = torch.arange(self.tokens)[None]
        mask = place < lengths[:, None]
        labels = ids.masked_fill(~mask | (place < lengths[:, None] // 2), -100)
        return {"input_ids": ids.masked_fill(~mask, 0), "labels": labels, "attention_mask": mask.long()}

    def base(self) -> Any:
        model = random_model(self.model, self.torch_dtype if self.mode == "lora" else torch.float32)
        if self.activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        return model

    def smaller(self) -> Iterator["Case"]:
        """The same with less of one thing."""
        for name, least in (("trials", 1), ("steps", 1), ("layers", 1), ("rows", 1), ("tokens", 8), ("shortest", 2)):
            value = getattr(self, name)
            for less in sorted({least, value // 2}):
                if least <= less < value:
                    case = dataclasses.replace(self, **{name: less})
                    yield dataclasses.replace(case, shortest=min(case.shortest, case.tokens))


# Training


def stock(case: Case, trial: int) -> Tensor:
    """The losses of a trial as Trainer trains it: autocast, stock PEFT, clipping, AdamW, cosine."""
    model = case.base()
    set_seed(0)
    if case.mode == "lora":
        model = get_peft_model(model, case.lora())
    model.train()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    groups: list[dict[str, Any]] = [
        {"params": [weight for name, weight in trained.items() if name in decayed]},
        {"params": [weight for name, weight in trained.items() if name not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], **case.optimizer(trial))
    schedule = get_scheduler("cosine", optimizer, 0, case.steps)
    batch = {key: value.to(DEVICE) for key, value in case.batch().items()}
    losses = []
    for _ in range(case.steps):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=case.dtype == "bfloat16"):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach().double())
    return torch.stack(losses).cpu()


def make_pack(case: Case) -> Pack:
    """A pack with a slot for each trial."""
    model = case.base()
    unpadded = lay_end_to_end(model, case.batch())
    compute = torch.bfloat16 if case.dtype == "bfloat16" else None
    if case.mode == "lora":
        pack = pack_lora(model, case.lora(), case.trials, compute=compute, compile_kernels=case.kernels)
    else:
        pack = pack_weights(model, case.trials, compute=compute)
    return dataclasses.replace(pack, unpadded=unpadded, maskless=unpadded)


def make_optimizer(case: Case, trial: int) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda groups: torch.optim.AdamW(groups, **case.optimizer(trial))


def together(
    case: Case,
    pack: Pack,
    *,
    size: int | None = None,
    poisoned: int | None = None,
    stop_at: int | None = None,
    runner: PassRunner | None = None,
) -> Tensor:
    """The losses [steps, trials] of the trials in a pack.

    Args:
        case: What is trained.
        pack: The pack; it is empty before and after.
        size: Trials in one pass; None is all.
        poisoned: A trial whose weights are made NaN.
        stop_at: The step at which all trials are saved to disk, evicted, and go on in a new pack.
        runner: Runs the passes; None for `train_pass`.
    """
    config = case.lora() if case.mode == "lora" else None
    schedules = []
    for slot in range(case.trials):
        optimizer = pack.admit(slot, pack.start(config, 0), make_optimizer(case, slot), max_norm=1.0, seed=slot)
        schedules.append(get_scheduler("cosine", optimizer, 0, case.steps))
    if poisoned is not None:
        for weight in pack.arena.read(poisoned).values():
            weight.fill_(torch.nan)
    batch, losses = case.batch(), []
    for step in range(case.steps):
        if step == stop_at:
            pack, schedules = resumed(case, pack, schedules)
        run = functools.partial(train_pass, pack) if runner is None else runner.train
        parts = [
            run(start, stop, join([batch] * (stop - start)))
            for start, stop in runs(range(case.trials), size or case.trials)
        ]
        losses.append(torch.cat(parts).double())
        pack.arena.step(range(case.trials))
        for schedule in schedules:
            schedule.step()
    for slot in range(case.trials):
        pack.evict(slot)
    return torch.stack(losses).cpu()


def resumed(case: Case, pack: Pack, schedules: Sequence[Any]) -> tuple[Pack, list[Any]]:
    """The trials in another pack, in reverse order of the slots' ends, from checkpoints on disk."""
    other, found = make_pack(case), []
    for slot, schedule in enumerate(schedules):
        state = {"pack": pack.state(slot), "schedule": schedule.state_dict()}
        rates = [{key: group[key] for key in ("lr", "initial_lr")} for group in schedule.optimizer.param_groups]
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(Path(folder), Checkpoint("packed", "a trial", 0, state))
            kept = checkpoint.load(Path(folder), "packed", "a trial")
        assert kept is not None
        optimizer = other.restore(slot, kept.state["pack"], make_optimizer(case, slot), max_norm=1.0)
        again = get_scheduler("cosine", optimizer, 0, case.steps)
        again.load_state_dict(kept.state["schedule"])
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group.update(rate)
        found.append(again)
    return other, found


# Checks: each returns the worst relative difference of losses, and whether it passes


def apart(a: Tensor, b: Tensor) -> float:
    return float((a / b - 1).abs().max().nan_to_num(torch.inf))


def against_stock(case: Case) -> Found:
    theirs = torch.stack([stock(case, trial) for trial in range(case.trials)], 1)
    pack = make_pack(case)
    worst = apart(together(case, pack), theirs)
    found: Found = {"worst": worst, "gate": case.gate, "end_to_end": bool(pack.unpadded)}
    fell = float((theirs[0] - theirs[-1]).max())
    found |= {"fell": round(fell, 4), "ok": worst < case.gate}
    if found["ok"] and case.steps >= 4 and fell < 0.02:
        found |= {"ok": False, "failed": "nothing was learnt, so nothing was compared"}
    return found | (with_kernels(found, pack) if case.kernels else {})


def with_kernels(found: Found, pack: Pack) -> Found:
    """Adds how many kernels are used: one that fails its trial is left out, and all numbers are right without it."""
    weight, dtype = next(pack.model.parameters()), pack.arena.compute_dtype
    used = {
        "gated MLPs": any("forward" in vars(m) and hasattr(m, "gate_proj") for m in pack.model.modules()),
        "rotation": kernels.rotation(pack.model) is not rotate_pair,
        "cross-entropy": kernels.has_cross_entropy(weight.device, dtype, pack.head.vocabulary),
    }
    missing = [name for name, is_used in used.items() if not is_used]
    if missing and kernels.can_run(weight.device, dtype):
        found |= {"ok": False, "failed": f"without a kernel: {', '.join(missing)}"}
    return found | {"kernels_used": len(used) - len(missing)}


def one_by_one(case: Case) -> Found:
    pack = make_pack(case)
    worst = apart(together(case, pack, size=1), together(case, pack))
    return {"worst": worst, "gate": case.gate, "ok": worst < case.gate}


def sick_neighbour(case: Case) -> Found:
    """A trial that is NaN must not change a bit of another."""
    pack = make_pack(case)
    healthy, beside = together(case, pack), together(case, pack, poisoned=0)
    unchanged = bool(torch.equal(beside[:, 1:], healthy[:, 1:]))
    repeats = bool(torch.equal(together(case, pack), healthy))
    isolated = unchanged or (not repeats and apart(beside[:, 1:], healthy[:, 1:]) < case.gate)
    return {"unchanged": unchanged, "repeats": repeats, "ok": isolated and bool(beside[:, 0].isnan().all())}


def from_checkpoints(case: Case) -> Found:
    pack = make_pack(case)
    whole, parted = together(case, pack), together(case, pack, stop_at=case.steps // 2)
    worst = apart(parted, whole)
    return {"worst": worst, "gate": case.gate, "bitwise": bool(torch.equal(parted, whole)), "ok": worst < case.gate}


def other_neighbours(case: Case) -> Found:
    """With dropout too, a trial has the curve that it has beside fewer others."""
    fewer = dataclasses.replace(case, trials=max(1, case.trials // 2))
    four, two = together(case, make_pack(case)), together(fewer, make_pack(fewer))
    worst = apart(four[:, : fewer.trials], two)
    plain = dataclasses.replace(fewer, dropout=0.0)
    drops = not torch.equal(two, together(plain, make_pack(plain)))
    return {"worst": worst, "gate": case.gate, "drops": drops, "ok": worst < case.gate and (drops or not case.dropout)}


def recomputed(case: Case) -> Found:
    plain = dataclasses.replace(case, activation_checkpointing=False)
    worst = apart(together(case, make_pack(case)), together(plain, make_pack(plain)))
    return {"worst": worst, "gate": case.gate, "ok": worst < case.gate}


def as_graphs(case: Case) -> Found:
    """Passes as CUDA graphs, from the third on."""
    if not ON_GPU:
        return {"ok": None, "skipped": "no GPU"}
    pack = make_pack(case)
    runner = GraphRunner(pack)
    worst = apart(together(case, pack, runner=runner), together(case, pack))
    return {
        "worst": worst,
        "gate": case.gate,
        "recorded": runner.recorded,
        "ok": worst < case.gate and runner.recorded > 0,
    }


def waits(case: Case) -> Found:
    """A step must not wait for the device; where it does is found by torch's own mode."""
    if not ON_GPU:
        return {"ok": None, "skipped": "no GPU"}
    pack = make_pack(case)
    for slot in range(case.trials):
        pack.admit(slot, pack.start(case.lora(), 0), make_optimizer(case, slot), max_norm=1.0)
    batch = join([case.batch()] * case.trials)

    def step() -> None:
        train_pass(pack, 0, case.trials, batch)
        pack.arena.step(range(case.trials))

    step()
    finish()
    with warnings.catch_warnings(record=True) as heard, _sync_warnings():
        warnings.simplefilter("always")
        step()
    found = [warning for warning in heard if "called a synchronizing" in str(warning.message)]
    places = sorted({f"{Path(warning.filename).name}:{warning.lineno}" for warning in found})
    return {"synchronizations": len(found), "places": places, "ok": not found}


@contextlib.contextmanager
def _sync_warnings() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


CHECKS: dict[str, Callable[[Case], Found]] = {
    "stock": against_stock,
    "one by one": one_by_one,
    "NaN": sick_neighbour,
    "checkpoints": from_checkpoints,
    "neighbours": other_neighbours,
    "recomputed": recomputed,
    "graphs": as_graphs,
    "waits": waits,
}


def cases(smoke: bool) -> list[tuple[str, str, Case]]:
    """Name, check and case of each step, the most important first."""
    whole = Case(steps=5, layers=2, rows=2, tokens=24, shortest=24, hidden=64) if smoke else Case()
    found = []
    for dtype in GATES:
        equal = dataclasses.replace(whole, dtype=dtype)
        unequal = dataclasses.replace(equal, shortest=whole.tokens // 10)
        for kind, case in (("equal rows", equal), ("unequal rows", unequal)):
            found.append((f"{dtype}, {kind}: packed against a stock PEFT loop", "stock", case))
        for kind, case in (("equal rows", equal), ("unequal rows", unequal)):
            with_all = dataclasses.replace(case, kernels=True)
            found.append((f"{dtype}, {kind}, kernels: packed against a stock PEFT loop", "stock", with_all))
        full = dataclasses.replace(unequal, mode="full")
        found.append((f"{dtype}, full fine-tuning: packed against a stock loop", "stock", full))
        found.append((f"{dtype}, equal rows: passes as CUDA graphs", "graphs", equal))
        found.append((f"{dtype}, unequal rows: passes as CUDA graphs", "graphs", unequal))
        with_all = dataclasses.replace(equal, kernels=True)
        found.append((f"{dtype}, equal rows, kernels: passes as CUDA graphs", "graphs", with_all))
        found.append((f"{dtype}: no bit of a NaN neighbour", "NaN", unequal))
        found.append((f"{dtype}: from checkpoints on disk", "checkpoints", unequal))
        found.append((f"{dtype}: trials one by one", "one by one", unequal))
        for kind, case in (("equal rows", equal), ("unequal rows", unequal)):
            found.append((f"{dtype}, {kind}: no wait for the device", "waits", case))
        found.append((f"{dtype}: dropout beside others", "neighbours", dataclasses.replace(unequal, dropout=0.2)))
    recomputing = dataclasses.replace(whole, activation_checkpointing=True)
    found.append(("float32: activation checkpointing", "recomputed", recomputing))
    return found


# The smallest reproduction


def checked(check: str, case: Case) -> Found:
    """What a check finds; if it fails, with the smallest case that fails in the same way."""
    found = attempted(check, case)
    if found["ok"] is False:
        found["reproduce"] = reproduction(check, reduced(check, case, found.get("failed")))
    return found


def attempted(check: str, case: Case) -> Found:
    try:
        return CHECKS[check](case)
    except torch.AcceleratorError:
        raise  # after it the device does nothing more for this process
    except Exception as fault:
        traceback.print_exc()
        return {"ok": False, "failed": f"{type(fault).__name__}: {str(fault).strip()[:300]}"}


def reduced(check: str, case: Case, failed: str | None) -> Case:
    """The smallest case found in the time that fails as `case` does: with the same error, or without one."""
    until = time.monotonic() + REDUCING_SECONDS

    def alike(less: Case) -> bool:
        found = attempted(check, less) if time.monotonic() < until else {"ok": None}
        return found["ok"] is False and _kind(found.get("failed")) == _kind(failed)

    while (smaller := next(filter(alike, case.smaller()), None)) is not None:
        case = smaller
    return case


def _kind(failed: str | None) -> str:
    """The type of an error, from its line."""
    return (failed or "").partition(":")[0]


def reproduction(check: str, case: Case) -> str:
    """The command that repeats a check."""
    changed = {name: value for name, value in vars(case).items() if value != getattr(Case(), name)}
    return f"python benchmarks/gpu_check.py --reproduce '{check}' '{json.dumps(changed)}'"


def main() -> None:
    arguments = arguments_of_child()
    steps = [
        Step(name, 30 + REDUCING_SECONDS, lambda check=check, case=case: checked(check, case))  # type: ignore[misc]
        for name, check, case in cases(arguments.smoke)
    ]
    run_steps(steps, arguments)


if __name__ == "__main__":
    main()
