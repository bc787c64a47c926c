"""How many trials share a pass: measured, because a pass that is bound by arithmetic only loses by being wider."""

import time
from collections.abc import Callable

import torch


class Widths:
    """Trials per pass, by pack key. A measurement costs about six trial-steps per trial of the widest pass."""

    def __init__(self) -> None:
        self._best: dict[str, int] = {}
        self._measured: dict[str, int] = {}

    def known(self, key: str) -> int:
        """The width found for this key; 1 before it is measured."""
        return self._best.get(key, 1)

    def best(self, key: str, active: int, run: Callable[[int], None]) -> int:
        """The width with the least time per trial among 1, 2, 4 ... `active`; `run(width)` does one pass.

        Measured when the key is new, and again when more trials are active than were then.
        """
        if active > self._measured.get(key, 1):
            self._best[key] = _fastest(_candidates(active), run)
            self._measured[key] = active
        return min(self.known(key), active)

    def keep(self, key: str, width: int, active: int) -> None:
        """Takes a width that was measured before, with so many trials active, where none is known yet."""
        if key not in self._measured:
            self._best[key], self._measured[key] = width, active

    def halve(self, key: str, width: int) -> int:
        """Half the width, for this pass and all after it."""
        self._best[key] = width // 2
        # What did not fit is not measured again.
        self._measured[key] = 10**9
        return width // 2


def _candidates(active: int) -> list[int]:
    return [width for width in (2**i for i in range(active.bit_length())) if width < active] + [active]


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
