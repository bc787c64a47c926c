"""Logs that belong together: several files of one run, and several runs of one sweep.

Only what is in the logs and the configs beside them counts, not how files and folders are called.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrsweep.analysis.diagnosis import Curve, Series
from lrsweep.analysis.diagnosis.cross_run_rules import SAME
from lrsweep.analysis.diagnosis.smoothing import FEWEST_EVALS
from lrsweep.analysis.diagnosis.training_kind import training_kind
from lrsweep.analysis.diagnosis.trend import eval_trend, trend
from lrsweep.analysis.log_readers import Log
from lrsweep.analysis.log_readers.arguments import named

# Logs round to four digits.
_ROUNDING = 1e-3
# The start of two runs of one sweep is the same model on other batches.
_SAME_START = 0.15
# Runs of one sweep are about equally long.
_SAME_LENGTH = 1.5


@dataclass(frozen=True)
class Group:
    """Runs of one sweep.

    Attributes:
        logs: The runs, best first.
        series: What they are ranked by: eval_loss, or loss if some run has no evaluations.
        finals: Each run's final value.
        differing: Each run's arguments that are not the same in all runs.
    """

    logs: tuple[Log, ...]
    series: str
    finals: tuple[float, ...]
    differing: tuple[dict[str, object], ...]


def distinct(logs: Sequence[Log]) -> list[tuple[Log, list[Log]]]:
    """Returns each run's longest log, with the other logs of the same run, such as those in its checkpoints."""
    found: list[tuple[Log, list[Log]]] = []
    for log in sorted(logs, key=lambda log: -_points(log.curve)):
        same = next((others for longest, others in found if _same_run(longest.curve, log.curve)), None)
        if same is None:
            found.append((log, []))
        else:
            same.append(log)
    return sorted(found, key=lambda one: list(logs).index(one[0]))


def other_runs(log: Log, logs: Sequence[Log]) -> list[Curve]:
    """Returns the curves of the other runs of a log's sweep that differ in learning rate or weight decay only."""
    return [
        other.curve
        for other in logs
        if other is not log
        and _one_sweep(log, other)
        and not _same_run(log.curve, other.curve)
        and set(_differing(log, other)) <= {"learning_rate", "weight decay"}
        and (_rates_differ(log.curve, other.curve) or log.curve.weight_decay != other.curve.weight_decay)
    ]


def groups(logs: Sequence[Log]) -> list[Group]:
    """Returns the sweeps with two runs or more among some runs' logs."""
    left, found = list(logs), []
    while left:
        first, *rest = left
        runs = [first, *(other for other in rest if _one_sweep(first, other))]
        left = [log for log in rest if log not in runs]
        if len(runs) > 1:
            found.append(_group(runs))
    return found


def _group(logs: Sequence[Log]) -> Group:
    by_evals = all(len(log.curve.eval_loss) >= FEWEST_EVALS for log in logs)
    finals = {id(log): _final(log.curve, by_evals) for log in logs}
    # Equal ends are told apart by the rate, so that names and the order of arguments do not matter.
    ranked = sorted(logs, key=lambda log: (finals[id(log)], log.curve.peak_lr or 0.0))
    arguments = [_arguments(log) for log in ranked]
    keys = dict.fromkeys(key for one in arguments for key in one)
    differing = [key for key in keys if len({str(one.get(key)) for one in arguments}) > 1]
    return Group(
        tuple(ranked),
        "eval_loss" if by_evals else "loss",
        tuple(finals[id(log)] for log in ranked),
        tuple({key: one.get(key) for key in differing} for one in arguments),
    )


def _final(curve: Curve, by_evals: bool) -> float:
    series = curve.eval_loss if by_evals else curve.loss
    found = eval_trend(series) if by_evals else trend(series)
    if found is None or not np.isfinite(series.values[-1]):
        return float("inf")
    return found.end


def _arguments(log: Log) -> dict[str, object]:
    rate = log.curve.peak_lr
    return named(log.arguments) | ({} if rate is None else {"learning_rate": float(f"{rate:.3g}")})


def _differing(one: Log, other: Log) -> list[str]:
    mine, theirs = _arguments(one), _arguments(other)
    return [key for key in mine if key in theirs and mine[key] != theirs[key]]


def _rates_differ(one: Curve, other: Curve) -> bool:
    if one.peak_lr is None or other.peak_lr is None:
        return False
    return abs(one.peak_lr - other.peak_lr) > SAME * max(one.peak_lr, other.peak_lr)


def _points(curve: Curve) -> int:
    return len(curve.loss) + len(curve.eval_loss)


def _same_run(one: Curve, other: Curve) -> bool:
    """Whether two logs have the same losses at the steps that both have, and share most of the shorter one's."""
    if _rates_differ(one, other) and len(one.loss) == len(other.loss):
        return False
    compared = 0
    for mine, theirs in ((one.loss, other.loss), (one.eval_loss, other.eval_loss)):
        a, b = _common(mine, theirs)
        if not np.allclose(a, b, rtol=_ROUNDING, atol=1e-4, equal_nan=True):
            return False
        compared += len(a)
    return compared >= 3 and compared >= 0.8 * min(_points(one), _points(other))


def _common(one: Series, other: Series) -> tuple["np.typing.NDArray[np.float64]", "np.typing.NDArray[np.float64]"]:
    _, mine, theirs = np.intersect1d(one.steps, other.steps, return_indices=True)
    return one.values[mine], other.values[theirs]


def _one_sweep(one: Log, other: Log) -> bool:
    """Whether two runs have the same kind, start and length, and log at the same steps."""
    a, b = one.curve, other.curve
    if training_kind(a) != training_kind(b):
        return False
    mine, theirs = named(one.arguments).get("model"), named(other.arguments).get("model")
    if mine is not None and theirs is not None and mine != theirs:
        return False
    series = [(a.loss, b.loss), (a.eval_loss, b.eval_loss)]
    most = max((pair for pair in series if min(map(len, pair))), key=lambda pair: min(map(len, pair)), default=None)
    if most is None:
        return False
    shorter, longer = sorted(most, key=lambda series: float(series.steps[-1]))
    common = len(_common(*most)[0])
    if common < 3 or common < 0.5 * min(map(len, most)):
        return False
    broken = not np.isfinite(shorter.values[-1])
    if not broken and longer.steps[-1] > _SAME_LENGTH * shorter.steps[-1]:
        return False
    return _starts_alike(a, b)


def _starts_alike(one: Curve, other: Curve) -> bool:
    untrained = [float(c.eval_loss.values[0]) for c in (one, other) if len(c.eval_loss) and c.eval_loss.steps[0] == 0]
    if len(untrained) == 2:
        return abs(untrained[0] - untrained[1]) <= 0.02 * max(map(abs, untrained))
    firsts, noise = [], 0.0
    for curve in (one, other):
        found = trend(curve.loss) or eval_trend(curve.eval_loss)
        if found is None:
            return False
        firsts.append(found.first)
        noise = max(noise, found.point_noise)
    return abs(firsts[0] - firsts[1]) <= max(_SAME_START, 3 * noise) * max(map(abs, firsts))
