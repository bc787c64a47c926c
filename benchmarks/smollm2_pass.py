"""A packed step of SmolLM2-135M against a bare PEFT loop on CPUs: `python benchmarks/smollm2_pass.py`, ten minutes.

A Llama of SmolLM2's shape with random weights, LoRA of rank 8 on all linear layers, float32, every second token has a
label. Batches of 1 row of 64 tokens and of 4 rows of 128. Arms: the loop that a PEFT user would write; the same with
logits at labels only and a fused AdamW; packed with one trial and with four. They run in turn, in a new random order
in each repeat. Then one packed step is profiled. Writes `results/smollm2_pass.json`.
"""

import argparse
import dataclasses
import gc
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import packing
import torch
from common import RESULTS, about, save, table

SHAPE = packing.Shape("smollm2", 30, 576, 1536, 49152, 1, 64, steps=2, tied=True, heads=9, kv_heads=3)
SHAPES = {"1 x 64": SHAPE, "4 x 128": dataclasses.replace(SHAPE, batch=4, tokens=128)}
TRIALS = 4
BARE, BARE_LABELS = "bare loop", "bare loop, logits at labels, fused AdamW"
ONE, FOUR = "packed, one trial", "packed, four trials"
# What the time of a step is spent on, by the names of torch's operations.
PARTS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn"),
    "attention": ("scaled_dot", "flash"),
    "loss": ("log_softmax", "nll_loss", "cross_entropy", "logsumexp"),
    "optimizer": ("adamw", "foreach", "norm"),
}


class Step:
    """An arm that can be stepped again and again.

    Args:
        arm: Its name.
        shape: The shape.
    """

    def __init__(self, arm: str, shape: packing.Shape) -> None:
        self.trials = TRIALS if arm == FOUR else 1
        self._batches = packing.make_batches(shape, shape.steps)
        self._arm = arm
        if arm in (ONE, FOUR):
            self._pack = packing.packed(shape, self.trials)
            self._schedules = packing.admit(self._pack, packing.TRIALS[: self.trials], 1000)
        else:
            self._model = packing.peft_model(shape)

    def run(self) -> None:
        """Trains every trial for the shape's steps."""
        if self._arm in (BARE, BARE_LABELS):
            better = self._arm == BARE_LABELS
            packing.train_bare(self._model, packing.TRIALS[0], self._batches, at_labels=better, fused=better)
            return
        for batch in self._batches:
            packing.one_step(self._pack, self.trials, batch, self.trials)
            self._pack.arena.step(range(self.trials))
            for schedule in self._schedules:
                schedule.step()


def shares(run: Callable[[], None]) -> dict[str, float]:
    """The share of the time of each part."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    spent: Counter[str] = Counter()
    for event in profile.key_averages():
        name = event.key.removeprefix("aten::").lower()
        part = next((part for part, names in PARTS.items() if any(word in name for word in names)), "the rest")
        spent[part] += event.self_cpu_time_total
    return {part: round(count / spent.total(), 3) for part, count in spent.most_common()}


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Returns the entry of one shape."""
    shape = SHAPES[name]
    arms = {arm: Step(arm, shape) for arm in (BARE, BARE_LABELS, ONE, FOUR)}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for step in arms.values():
        step.run()
    for _ in range(repeats):
        for arm, step in random.sample(list(arms.items()), len(arms)):
            gc.collect()
            start = time.perf_counter()
            step.run()
            seconds[arm].append((time.perf_counter() - start) / shape.steps / step.trials)
    least = {arm: min(values) for arm, values in seconds.items()}
    parts = shares(arms[FOUR].run)
    rows = [[arm, f"{least[arm]:.3f}", f"{least[arm] / least[FOUR]:.2f}x"] for arm in arms]
    print(table([f"{name} tokens", "seconds a trial-step, least", "packed, four trials is faster by"], rows))
    print(f"a step of four packed trials: {parts}", flush=True)
    return {
        "batch": name,
        "seconds_a_trial_step": {arm: [round(value, 4) for value in values] for arm, values in seconds.items()},
        "packed_4_faster_by": {arm: round(least[arm] / least[FOUR], 3) for arm in arms if arm != FOUR},
        "shares_of_a_packed_step": parts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS / "smollm2_pass.json")
    arguments = parser.parse_args()
    random.seed(0)
    known = about("torch", "transformers", "peft")
    entries = []
    for name in SHAPES:
        entries.append(measure(name, arguments.repeats))
        save(arguments.out, known, shapes=entries)


if __name__ == "__main__":
    main()
