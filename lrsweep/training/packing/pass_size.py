"""How many trials share a forward pass. It is measured: a pass bound by arithmetic only loses by being larger."""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import platformdirs
import torch
from pydantic import PositiveInt, TypeAdapter, ValidationError

from lrsweep import hardware
from lrsweep.errors import StorageError
from lrsweep.files.atomic import write_text
from lrsweep.training.out_of_memory import is_out_of_memory
from lrsweep.training.phases import NONE, phase

# Seconds of a pass that arithmetic takes up, nearly all of them: such a pass is timed once, and if it saves less than
# this share of a trial's time over the pass of half the size, a larger one would hardly save more.
_SLOW = 0.5
_LITTLE = 0.03
# No pass takes this many times as long as its trials one by one. The first of a size that does has done something that
# comes only once, such as compiling a kernel.
_ONCE = 1.1


class PassSizes:
    """Trials per pass, by pack key.

    A measurement costs about six trial-steps per trial of the largest pass, and a few trial-steps with a slow model.

    Measurements are saved in the sweep's folder for later workers, and in the user's cache for later sweeps: these need
    not measure again, and they add in the same order, so that the same sweep has the same losses again.

    Args:
        file: The sweep's file of measurements. None keeps them in memory only.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        cache = platformdirs.user_cache_path("lrsweep") / "pass_sizes.json"
        # Without a home, the path is a relative one.
        self._cache = cache if file is not None and cache.is_absolute() else None
        self._best: dict[str, int] = {}
        # How many trials were active at the measurement.
        self._active: dict[str, int] = {}

    def current(self, key: str) -> int:
        """The pass size for this pack key; 1 before it is measured."""
        return self._best.get(key, 1)

    def fastest(self, key: str, active: int, run: Callable[[int], None]) -> int:
        """The size with the least time per trial among 1, 2, 4 ... `active`.

        Measured when the key is new, and again when more trials are active than at the last measurement.

        Args:
            key: The pack key.
            active: Trials in the pack now.
            run: Does one pass of so many trials.
        """
        if key not in self._active and (kept := _read(self._file).get(_digest(key))) is not None:
            self._best[key], self._active[key] = kept
        if active > self._active.get(key, 1):
            # With another number of active trials another size may be fastest: an entry is of one number.
            digest = _digest(f"{key} {active}")
            remembered = _read(self._cache).get(digest)
            if remembered is None:
                phase("measuring how many trials share a pass")
                remembered = _fastest(_candidates(active), run), active
                phase(NONE)
                with contextlib.suppress(StorageError):  # the next sweep then measures again
                    _write(self._cache, digest, remembered)
            self._best[key], self._active[key] = remembered
            _write(self._file, _digest(key), remembered)
        return min(self.current(key), active)

    def take_over(self, key: str, size: int, active: int) -> None:
        """Uses a size that an earlier run measured with so many active trials, unless this run has one already."""
        if key not in self._active:
            self._best[key], self._active[key] = size, active

    def halve(self, key: str, size: int) -> int:
        """Half the size, for this pass and all after it."""
        self._best[key] = size // 2
        # What did not fit is not measured again in this sweep; in a later one there may be more memory.
        self._active[key] = 10**9
        _write(self._file, _digest(key), (self._best[key], self._active[key]))
        return size // 2

    def forget(self, key: str) -> None:
        """Has the size of this pack key measured anew: there is more memory for a pass."""
        self._best[key], self._active[key] = 1, 0


# A size and how many trials were active, by digest.
_Sizes = TypeAdapter(dict[str, tuple[PositiveInt, PositiveInt]])


def _read(file: Path | None) -> dict[str, tuple[int, int]]:
    try:
        return _Sizes.validate_json(file.read_bytes()) if file is not None else {}
    except (OSError, ValidationError):
        return {}  # missing or damaged: measured again


def _write(file: Path | None, digest: str, measured: tuple[int, int]) -> None:
    if file is not None:
        write_text(file, json.dumps({**_read(file), digest: measured}))


def _digest(key: str) -> str:
    """The key on this device and with this torch: elsewhere another size may be fastest."""
    device = f"{hardware.describe()} {torch.get_num_threads()} {torch.__version__}"
    return hashlib.sha256(f"{device} {key}".encode()).hexdigest()[:16]


def _candidates(active: int) -> list[int]:
    return [size for size in (2**i for i in range(active.bit_length())) if size < active] + [active]


def _fastest(sizes: list[int], run: Callable[[int], None]) -> int:
    seconds: dict[int, float] = {}
    for size in sizes:
        least = min(seconds.values(), default=math.inf)
        try:
            found = _timed(run, size)  # this one allocates
            if not (_SLOW < found <= _ONCE * least * size) or not seconds:
                found = min(_timed(run, size) for _ in range(2))
            seconds[size] = found / size
        except RuntimeError as fault:
            if not is_out_of_memory(fault):
                raise
            break
        if found > _SLOW and seconds[size] > (1 - _LITTLE) * least:
            break
    return min(seconds, key=lambda size: seconds[size]) if seconds else 1


def _timed(run: Callable[[int], None], size: int) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(size)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
