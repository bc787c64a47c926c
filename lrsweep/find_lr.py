"""A learning-rate range test: one trial in which the lr rises at every step, and what its losses say about where to sweep.

Finders differ in what they call steepest: by the step, by the lr, or by the log of the lr. Here it is the log: rates are
searched on a log scale, and a rise from 1e-5 to 3e-5 is one from 1e-3 to 3e-3. Every difference is held against noise, and
what lies past the minimum counts for nothing but the blow-up.
"""

import math
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lrsweep.config import SweepConfig
from lrsweep.curves import rung
from lrsweep.curves.levels import noise
from lrsweep.errors import InputError, NoWinnerError
from lrsweep.finetune.data import check_paths
from lrsweep.finetune.folder import check_path

if TYPE_CHECKING:
    from lrsweep.finetune.range_test import Point

Floats = NDArray[np.float64]
# Shows a trial's progress: passes on what it is given.
Watch = Callable[[Iterable["Point"]], Iterable["Point"]]

FROM, TO, STEPS = 1e-7, 10.0, 100
FEWEST_STEPS, MOST_STEPS = 20, 100_000

# Weight of the past in the moving average: five steps or so, at the default ramp under half a decade.
_SMOOTHING = 0.8
# Steps until the average has enough in it to be taken for a minimum.
_SETTLED = 5
# The ramp is over when the smoothed loss is this many times its best, as in fastai; a language model's loss seldom comes to
# that before it is as bad as guessing, so also when it is this many times the untouched model's.
_OVER_BEST, _OVER_BASE = 4.0, 1.25
# The loss falls if it does by that many standard errors, and by this share of what it was.
_ERRORS, _LEAST_FALL = 4.0, 0.005
# Where it never falls, it blows up when it lies by this share above what it was.
_LEAST_RISE = 0.02
# It has begun to fall at this share of the whole fall, and blows up when this share is lost again.
_BEGUN, _LOST = 0.1, 0.5
# The range's low end lies this many times below the minimum: each rate had one step, and a whole run wants less.
_NEAREST, _FARTHEST = 30.0, 100.0
# And its high end at most this many times above it.
_ABOVE = 10.0


class NoRangeError(NoWinnerError):
    """The range test shows no range."""


@dataclass(frozen=True)
class RangeTest:
    """What a ramp shows. Arrays are [n], a point a step; losses in nats a token.

    `smooth` is `loss` averaged and `smooth_lr` the rates averaged alike on the log scale, so that the average does not lag
    behind. Rates are None where there is none. `lrs` is the range to sweep, rungs of 1e-5, 3e-5, 1e-4 ...; it is empty where
    no range was found. `reason` says why in either case. `error` is the standard error of a smoothed loss.
    """

    lr: Floats
    loss: Floats
    smooth_lr: Floats
    smooth: Floats
    base_loss: float
    error: float
    reason: str
    lrs: tuple[float, ...] = ()
    begun_lr: float | None = None
    steepest_lr: float | None = None
    minimum_lr: float | None = None
    minimum_loss: float | None = None
    blow_up_lr: float | None = None


def rates(low: float, high: float, steps: int) -> Floats:
    """The ramp [steps]: every rate the same factor above the last. Raises InputError."""
    if not (0 < low < high < math.inf):
        raise InputError(f"--from {low:g} --to {high:g}: two rates are needed, 0 < from < to")
    if steps < FEWEST_STEPS:
        raise InputError(
            f"--steps {steps}: at least {FEWEST_STEPS}, a dozen for each factor of ten between --from and --to"
        )
    if steps > MOST_STEPS:
        raise InputError(f"--steps {steps}: at most {MOST_STEPS}; a hundred are enough")
    return np.geomspace(low, high, steps)


def find(config: SweepConfig, ramp_rates: Sequence[float] | Floats, watch: Watch = iter) -> RangeTest:
    """Runs the range test on the config's model and data. Writes nothing. Raises InputError."""
    check_path(config.model)
    check_paths(config.data)
    # torch and transformers take seconds to import: after what can be refused without them.
    from lrsweep.finetune.optimizer import check_buildable
    from lrsweep.finetune.range_test import ramp

    check_buildable(config.optimizer, config.scheduler, config.training.schedule_steps)
    lrs: list[float] = []
    changes: list[float] = []
    bases: list[float] = []
    for point in watch(ramp(config, [float(lr) for lr in ramp_rates])):
        lrs.append(point.lr)
        changes.append(point.loss - point.base)
        bases.append(point.base)
        if blown_up(np.array(changes) + np.mean(bases), float(np.mean(bases))):
            break
    base = float(np.mean(bases))
    # As if all rows were as hard as they are on average.
    return analyse(np.array(lrs), np.array(changes) + base, base)


def blown_up(loss: Floats, base_loss: float) -> bool:
    """Whether losses [n] have come so far up, or out of all numbers, that no higher rate need be tried."""
    if not np.isfinite(loss).all():
        return True
    course = smoothed(loss)
    return bool(course[-1] > _OVER_BEST * course.min() or course[-1] > _OVER_BASE * base_loss)


def smoothed(values: Floats) -> Floats:
    """The exponential moving average [n], without the pull to zero that its start would have (Adam's bias correction)."""
    average, found = 0.0, np.empty(len(values))
    for i, value in enumerate(values):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * value
        found[i] = average / (1 - _SMOOTHING ** (i + 1))
    return found


def analyse(lr: Floats, loss: Floats, base_loss: float | None = None) -> RangeTest:
    """What losses [n] at rising rates [n] show. What cannot be told is a `reason` without `lrs`.

    `base_loss` is the untouched model's on the same rows; where it is not known it is read from the ramp's first tenth.
    """
    bad = ~np.isfinite(loss)
    n = int(bad.argmax()) if bad.any() else len(loss)
    not_finite_lr = float(lr[n]) if n < len(loss) else None
    usable = loss[:n]
    course, places = smoothed(usable), 10 ** smoothed(np.log10(lr[:n]))
    head = usable[: max(n // 10, 3)]
    base = base_loss if base_loss is not None else float(np.median(head)) if n else math.nan

    def answer(reason: str, error: float = 0.0, **found: Any) -> RangeTest:
        return RangeTest(lr, loss, places, course, base, error, reason, **found)

    if n < 2 * _SETTLED:
        return answer(f"it blows up within {n + 1} steps of lr {lr[0]:.2g}; lower --from", blow_up_lr=not_finite_lr)
    low = _SETTLED + int(course[_SETTLED:].argmin())
    error_of_one = _noise(usable[: max(low + 1, FEWEST_STEPS)])
    error = error_of_one * math.sqrt(_variance(low))
    # A base loss read from the ramp is uncertain itself; a median is 1.25 times as uncertain as a mean.
    doubt = error if base_loss is not None else math.hypot(error, 1.25 * error_of_one / math.sqrt(len(head)))
    fall = base - float(course[low])
    needed = max(_ERRORS * doubt, _LEAST_FALL * abs(base))
    falls = fall > needed
    lost = float(course[low]) + max(_LOST * fall, 2 * doubt) if falls else base + max(needed, _LEAST_RISE * abs(base))
    rises = course[low:] > lost
    blow_up = float(places[low + rises.argmax()]) if rises.any() else not_finite_lr
    if not falls:
        up = f"; it blows up at lr {blow_up:.2g}" if blow_up else ""
        return answer(
            f"the loss falls from {base:.4g} by {max(round(fall, 6), 0):.2g}, and less than {needed:.2g} may be noise{up}",
            error, blow_up_lr=blow_up,
        )  # fmt: skip
    # Behind the last point above the mark: noise may dip under it before.
    above = course[: low + 1] > base - max(_BEGUN * fall, 2 * doubt)
    start = low - int(above[::-1].argmax()) if above.any() else 0
    # A slope is noisier than a level: averaged once more.
    twice, where = smoothed(course), smoothed(np.log10(places))
    slope = np.gradient(twice[start : low + 1], where[start : low + 1])
    steepest = float(10 ** where[start + slope.argmin()])
    begun, minimum = float(places[start]), float(places[low])
    lrs = _range(begun, minimum, blow_up or float(lr[-1]))
    end = "about where it blows up" if blow_up and blow_up <= _ABOVE * minimum else "well past the lowest loss"
    reason = f"from where the loss falls to {end}"
    if blow_up is None and low >= n - _SETTLED:
        reason = f"though the loss still falls at the last rate, {lr[-1]:.2g}: raise --to to see where it blows up"
    return answer(
        reason, error, lrs=lrs, begun_lr=begun, steepest_lr=steepest, minimum_lr=minimum,
        minimum_loss=float(course[low]), blow_up_lr=blow_up,
    )  # fmt: skip


def _variance(i: int) -> float:
    """Of the average's i-th value, for points of variance 1: less and less, down to (1 - s) / (1 + s)."""
    past = _SMOOTHING ** (i + 1)
    return (1 - _SMOOTHING) / (1 + _SMOOTHING) * (1 + past) / (1 - past)


def _noise(values: Floats) -> float:
    """Standard deviation of a point about its trend in the loudest third.

    While the lr is too small to matter, a loss that is compared with the untouched model's has hardly any.
    """
    return max(noise(part) for part in ([values] if len(values) < 12 else np.array_split(values, 3)))


def _range(begun: float, minimum: float, highest: float) -> tuple[float, ...]:
    low = _at_or_below(min(max(begun, minimum / _FARTHEST), minimum / _NEAREST))
    high = max(_at_or_below(min(highest, minimum * _ABOVE)), rung(low, 1))
    found = [low]
    while found[-1] < high:
        found.append(rung(found[-1], 1))
    return tuple(found)


def _at_or_below(lr: float) -> float:
    """The rung 1e-5, 3e-5, 1e-4 ... at or below, where a tenth above counts as at."""
    return rung(1.21 * lr, -1)


# What people and programs are told


def command(config: SweepConfig, test: RangeTest, overrides: Sequence[str]) -> str:
    """The sweep over the proposed range as a command for a shell; `overrides` are those the range test was run with."""
    kept = [text for text in overrides if not re.match(r"\+*(sweep|space\.optimizer\.lr)=", text)]
    asked = [text.lstrip("+") for text in overrides if re.match(r"\+*sweep=", text)]
    named = any(re.match(r"\+*name=", text) for text in kept)
    if asked:
        kept.insert(0, f"+{asked[-1]}")
    elif config.finetune.mode in ("lora", "full"):
        kept.insert(0, f"+sweep={config.finetune.mode}_lr")
    elif not named:
        kept.insert(0, f"name={config.finetune.mode}_lr")
    kept.insert(1, f"space.optimizer.lr=[{','.join(shown(lr) for lr in test.lrs)}]")
    return " ".join(["lrsweep", *map(shlex.quote, kept)])


def words(test: RangeTest, ready: str) -> str:
    """The answer in lines; `ready` is the command for the range, empty where there is none."""
    lines = [f"{'untouched':<16}{'':<14}loss {test.base_loss:.4f}"]
    for name, lr, loss in (
        ("begins to fall", test.begun_lr, None),
        ("falls steepest", test.steepest_lr, None),
        ("lowest", test.minimum_lr, test.minimum_loss),
        ("blows up", test.blow_up_lr, None),
    ):
        if lr is not None:
            told = f"lr {lr:.2g}"
            lines.append(f"{name:<16}{told:<14}{f'loss {loss:.4f}' if loss is not None else ''}".rstrip())
    if ready:
        lines += [
            "",
            f"A range to sweep, {test.reason}:",
            f"    {ready}",
            "",
            "This is where to look, not which rate to take: each rate had one step here, which flatters rates that are too",
            "high for a whole run. The sweep's short runs decide.",
        ]
    return "\n".join(lines)


def as_json(test: RangeTest, ready: str) -> dict[str, Any]:
    """The answer for programs; a number that is not finite is null."""
    return {
        "found": bool(test.lrs),
        "reason": test.reason,
        "lrs": list(test.lrs),
        "command": ready or None,
        "begun_lr": test.begun_lr,
        "steepest_lr": test.steepest_lr,
        "minimum_lr": test.minimum_lr,
        "minimum_loss": test.minimum_loss,
        "blow_up_lr": test.blow_up_lr,
        "base_loss": _finite(test.base_loss),
        "error": test.error,
        "points": [{"lr": float(lr), "loss": _finite(loss)} for lr, loss in zip(test.lr, test.loss, strict=True)],
    }


def check_plot(path: Path) -> None:
    """Refuses a picture that could not be written, before anything is trained. Raises InputError."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {path}: the file's ending says what is written; use .png, .svg or .pdf")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--plot {path}: no such folder: {path.parent}")


def picture(test: RangeTest, path: Path) -> None:
    """Writes the losses over the rates, what was read from them, and the proposed range as a band."""
    from matplotlib.figure import Figure

    from lrsweep.outputs import disk_faults

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    plot = figure.add_subplot()
    plot.spines[["top", "right"]].set_visible(False)
    plot.grid(color="#e5e7eb", linewidth=0.8)
    plot.set_axisbelow(True)
    plot.plot(
        test.lr, np.where(np.isfinite(test.loss), test.loss, np.nan), color="#93c5fd", linewidth=1.0, label="loss"
    )
    plot.plot(test.smooth_lr, test.smooth, color="#1d4ed8", linewidth=2.0, label="smoothed")
    plot.axhline(test.base_loss, color="#9ca3af", linestyle="--", linewidth=1, label="untouched model")
    if test.lrs:
        plot.axvspan(
            test.lrs[0], test.lrs[-1], color="#d1fae5", label=f"to sweep: {shown(test.lrs[0])} to {shown(test.lrs[-1])}"
        )
    for name, lr, colour in (
        ("steepest", test.steepest_lr, "#059669"),
        ("lowest", test.minimum_lr, "#d97706"),
        ("blows up", test.blow_up_lr, "#dc2626"),
    ):
        if lr is not None:
            plot.axvline(lr, color=colour, linewidth=1.2, linestyle=":", label=f"{name}: {lr:.2g}")
    if test.minimum_loss is not None:
        # What blows up would flatten the rest; it leaves the picture at the top instead.
        fall = test.base_loss - test.minimum_loss
        plot.set_ylim(test.minimum_loss - 0.3 * fall, test.base_loss + 1.5 * fall)
    plot.set_xscale("log")
    plot.set_xlabel("learning rate, one step each")
    plot.set_ylabel("loss on like rows")
    plot.legend(frameon=False, fontsize=8)
    with disk_faults(path):
        figure.savefig(path, dpi=130)


def shown(lr: float) -> str:
    """1e-4 as people write it; from 1 on as it is."""
    if lr >= 1:
        return f"{lr:g}"
    mantissa, _, power = f"{lr:.1e}".partition("e")
    return f"{float(mantissa):g}e{int(power)}"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
