"""How many trials share a pass: measured, because a pass that is bound by arithmetic only loses by being wider."""

import time
from collections.abc import Callable

import torch


class Widths:
    """Trials per pass, by pack key. A measurement costs about four trial-steps per trial of the widest pass."""

    def __init__(self) -> None:
        self._best: dict[str, int] = {}

    def known(self, key: str) -> int:
        """The width found for this key; 1 before it is measured."""
        return self._best.get(key, 1)

    def best(self, key: str, active: int, slots: int, run: Callable[[int], None]) -> int:
        """The width with the least time per trial among 1, 2, 4 ... up to `slots`; `run(width)` does one pass.

        Until enough trials are there to fill the slots, the width is what there are, at most.
        """
        if key not in self._best and active == slots:
            self._best[key] = _fastest(_candidates(slots), run)
        return min(self._best.get(key, active), active)

    def halve(self, key: str, width: int) -> int:
        """Half the width, for this pass and all after it."""
        self._best[key] = width // 2
        return width // 2


def _candidates(slots: int) -> list[int]:
    return [width for width in (2**i for i in range(slots.bit_length())) if width < slots] + [slots]


def _fastest(widths: list[int], run: Callable[[int], None]) -> int:
    seconds: dict[int, float] = {}
    for width in widths:
        try:
            run(width)  # the first one allocates
            seconds[width] = min(_timed(run, width) for _ in range(2)) / width
        except torch.OutOfMemoryError:
            break
    return min(seconds, key=lambda width: seconds[width]) if seconds else 1


def _timed(run: Callable[[int], None], width: int) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(width)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
