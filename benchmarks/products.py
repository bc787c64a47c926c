"""Times the packed engine's small products, each computed two ways: `python benchmarks/products.py`, half a minute.

On a CPU, in float32, for eight trials of 330 tokens: the frozen base's products with torch's default and with lrsweep's
own function; and the adapters' products that lrsweep transposes, as written in the formula and transposed.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, about, save, table

from lrsweep.training.packing.functions import linear

TRIALS, TOKENS, RANK = 8, 330, 8
# Input and output width: the layers of the embedded model, and of a 0.5B model.
SHAPES = ((128, 128), (128, 352), (352, 128), (896, 896), (896, 4864))


def ways(inner: int, outer: int) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Returns each product as the formula writes it, and as lrsweep computes it."""
    x, dy = torch.randn(TRIALS, TOKENS, inner), torch.randn(TRIALS, TOKENS, outer)
    weight, b, low = torch.randn(outer, inner), torch.randn(TRIALS, outer, RANK), torch.randn(TRIALS, TOKENS, RANK)
    return {
        "x W^T": (lambda: F.linear(x, weight), lambda: linear(x, weight)),
        "dy W": (lambda: dy @ weight, lambda: linear(dy, weight.mT)),
        "dy B": (lambda: torch.bmm(dy, b), lambda: torch.bmm(dy, b.mT.contiguous().mT)),
        "dy^T (x A^T)": (lambda: torch.bmm(dy.mT, low), lambda: torch.bmm(low.mT, dy).mT),
    }


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS / "products.json")
    arguments = parser.parse_args()
    rows, entries = [], []
    shuffle = random.Random(0)
    for inner, outer in SHAPES:
        for name, both in ways(inner, outer).items():
            assert torch.allclose(both[0](), both[1](), rtol=1e-3, atol=1e-3)
            times: list[list[float]] = [[], []]
            for _ in range(arguments.repeats):
                for i in shuffle.sample((0, 1), 2):
                    times[i].append(1e6 * seconds(both[i]))
            medians = [statistics.median(found) for found in times]
            lows = [min(found) for found in times]
            entries.append(
                {
                    "in": inner,
                    "out": outer,
                    "product": name,
                    "as_it_stands": [round(lows[0]), round(medians[0])],
                    "as_taken": [round(lows[1]), round(medians[1])],
                    "faster": round(medians[0] / medians[1], 2),
                }
            )
            rows.append(
                [f"{inner} to {outer}", name, *(f"{us:.0f}" for us in medians), f"{medians[0] / medians[1]:.2f}x"]
            )
    print(table(["layer", "product", "us by the formula", "us in lrsweep", "faster"], rows))
    save(arguments.out, about("torch") | {"microseconds": ["min", "median"]}, products=entries)


if __name__ == "__main__":
    main()
