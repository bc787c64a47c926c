"""How many trials share a pass: measured, because a pass that is bound by arithmetic only loses by being wider."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lrsweep.outputs import write


class Widths:
    """Trials per pass, by pack key. A measurement costs about six trial-steps per trial of the widest pass.

    What was measured is kept in `file`, for workers that come later: they need not measure again, and sum in the same order.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._best: dict[str, int] = {}
        self._measured: dict[str, int] = {}

    def known(self, key: str) -> int:
        """The width found for this key; 1 before it is measured."""
        return self._best.get(key, 1)

    def _read(self) -> dict[str, list[int]]:
        try:
            found: dict[str, list[int]] = json.loads(self._file.read_text()) if self._file is not None else {}
        except (OSError, ValueError):
            return {}  # not there, or damaged: it is measured again
        return found

    def _write(self, key: str) -> None:
        if self._file is not None:
            found = {**self._read(), _digest(key): [self._best[key], self._measured[key]]}
            write(self._file, json.dumps(found))

    def best(self, key: str, active: int, run: Callable[[int], None]) -> int:
        """The width with the least time per trial among 1, 2, 4 ... `active`; `run(width)` does one pass.

        Measured when the key is new, and again when more trials are active than were then.
        """
        if key not in self._measured and (kept := self._read().get(_digest(key))) is not None:
            self._best[key], self._measured[key] = kept
        if active > self._measured.get(key, 1):
            self._best[key] = _fastest(_candidates(active), run)
            self._measured[key] = active
            self._write(key)
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
        self._write(key)
        return width // 2


def _digest(key: str) -> str:
    """The key on this device: another one may be fastest at another width."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu {torch.get_num_threads()}"
    return hashlib.sha256(f"{device} {key}".encode()).hexdigest()[:16]


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
