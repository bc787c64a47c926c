"""Defines the labels of the corpus from information that the diagnosis does not see.

For every run this is known: the treatment it got, the other runs of its setting (at other rates and decays), every
step's training loss, and the probe: the loss of the same held-out rows at sixteen steps, the first before any training.
BEST is the run of a setting, among those without decay, whose probe ends lowest. FALL is the distance from the base's
probe to the lowest probe value of any of these runs. A run is

- inert: its setting is broken, and the probe never changes.
- diverged: a loss or gradient is not finite.
- over_regularised: decay was added, and both the probe and the training loss end higher than in the run without decay
  (same rate, healthy), by over 15 % of that run's fall. If the difference is under 5 %, the run is judged like one
  without decay.
- overfitting: each row is seen three times or more; the probe falls by over 20 % of FALL, then turns for good (its last
  third stays above the minimum by over a third of the final rise, and that rise is over 15 % of its fall and 2 % of the
  loss), while the training loss over the same steps keeps falling; and the training loss never rises above its start:
  in no eighth of the run is its mean over 105 % of the base's probe.
- too_high: its rate is above BEST's, and the probe rises above the base's by over 15 % of FALL (and 1 % of the loss)
  and ends with under 80 % of FALL; or it does not oscillate and ends with less than half of FALL. Where each row is
  seen three times or more, the training loss must rise above its start, too.
- oscillating: its rate is above BEST's, and the probe never rises as far as for too_high, but after the first fifth of
  the run it turns four times or more and its rises sum to over 30 % of FALL; and a run at a fifth to half the rate ends
  better by over 10 % of FALL.
- too_low: its rate is below BEST's, and the probe falls by less than half of FALL without turning.
- healthy: the probe ends with over 85 % of FALL, is never clearly above its start, ends less than 5 % of FALL above its
  minimum, and does not swing as in an oscillating run.

The definitions are tried in this order. In a setting whose BEST run hardly learns (FALL is under 3 % of the base's
loss), only the first two are tried. A run that fits no definition has no label.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Run = Mapping[str, Any]
# Ways to break training: adapters scaled to zero, an optimizer whose eps cancels every step, a base without gradients.
BROKEN = ("scaled away", "no step", "dead base")


def label_group(kind: str, epochs: float, runs: Sequence[Run]) -> list[str]:
    """Returns the label of each run of a setting; "" is no label.

    Args:
        kind: The setting's kind.
        epochs: How often a run sees each of its rows.
        runs: Each has `lr`, `weight_decay`, `series.loss` and `series.grad_norm` (every step), `probe.steps` and
            `probe.values`.
    """
    if kind in BROKEN:
        assert all(np.ptp(run["probe"]["values"]) < 1e-5 for run in runs), "the probe of a broken setting changed"
        return ["inert"] * len(runs)
    finite = [run for run in runs if _finite(run)]
    plain = [run for run in finite if not run["weight_decay"]]
    base = plain[0]["probe"]["values"][0]
    best = min(plain, key=lambda run: float(run["probe"]["values"][-1]))
    fall = base - min(min(run["probe"]["values"]) for run in plain)
    learns = fall > 0.03 * base
    labels = []
    for run in runs:
        if run not in finite:
            labels.append("diverged")
        elif not learns:
            labels.append("")
        else:
            labels.append(_decayed(run, plain, best, fall, epochs) or _label(run, plain, best, fall, epochs))
    return ["" if label == "between" else label for label in labels]


def _finite(run: Run) -> bool:
    return bool(np.isfinite([*run["series"]["loss"], *run["series"]["grad_norm"], *run["probe"]["values"]]).all())


def _decayed(run: Run, plain: Sequence[Run], best: Run, fall: float, epochs: float) -> str:
    """Returns `over_regularised`, `between` if the effect is unclear, or "" if there is no decay or no effect."""
    if not run["weight_decay"]:
        return ""
    free = next((other for other in plain if other["lr"] == run["lr"]), None)
    if free is None or _label(free, plain, best, fall, epochs) != "healthy":
        return "between"
    probe = _gap(run["probe"]["values"][-1], free["probe"]["values"][-1], _fall(free))
    loss = _gap(_ending(run), _ending(free), _fall(free))
    if min(probe, loss) > 0.15:
        return "over_regularised"
    return "" if max(probe, loss) < 0.05 else "between"


def _label(run: Run, plain: Sequence[Run], best: Run, fall: float, epochs: float) -> str:
    """Returns the label of a finite run, decay aside; `between` if it fits no definition."""
    values = np.array(run["probe"]["values"])
    share = float(values[0] - values[-1]) / fall
    risen = float(values.max() - values[0]) > max(0.15 * fall, 0.01 * values[0])
    above, below = run["lr"] > best["lr"], run["lr"] < best["lr"]
    if epochs >= 3 and _overfits(run, fall) and not _trains_up(run):
        return "overfitting"
    if above and not risen and _swings(values, fall) and _a_third_is_better(run, plain, fall):
        return "oscillating"
    if above and ((risen and share < 0.8) or share < 0.5):
        return "too_high" if epochs < 3 or _trains_up(run) else "between"
    turned = float(values[-1] - values.min()) / fall
    if below and share < 0.5 and turned < 0.05:
        return "too_low"
    if share > 0.85 and turned < 0.05 and not risen and not _swings(values, fall):
        return "healthy"
    return "between"


def _overfits(run: Run, fall: float) -> bool:
    steps, values = np.array(run["probe"]["steps"]), np.array(run["probe"]["values"])
    low = int(values.argmin())
    fell, rise = float(values[0] - values[low]), float(values[-1] - values[low])
    late = values[max(low + 1, 2 * len(values) // 3) :]
    if fell < 0.2 * fall or rise < max(0.15 * fell, 0.02 * values[low]) or late.min() < values[low] + rise / 3:
        return False
    losses = np.array(run["series"]["loss"])
    width = max(len(losses) // 8, 1)
    at = max(int(steps[low]), width)
    return float(losses[-width:].mean()) < 0.97 * float(losses[at - width : at].mean())


def _trains_up(run: Run) -> bool:
    parts = np.array_split(np.array(run["series"]["loss"]), 8)
    return max(float(part.mean()) for part in parts) > 1.05 * float(run["probe"]["values"][0])


def _swings(values: Floats, fall: float) -> bool:
    moves = np.diff(values[len(values) // 5 :])
    turns = int((moves[1:] * moves[:-1] < 0).sum())
    return turns >= 4 and float(moves[moves > 0].sum()) > 0.3 * fall


def _a_third_is_better(run: Run, plain: Sequence[Run], fall: float) -> bool:
    ends = [other["probe"]["values"][-1] for other in plain if 0.19 < other["lr"] / run["lr"] < 0.51]
    return bool(ends) and run["probe"]["values"][-1] - min(ends) > 0.1 * fall


def _ending(run: Run) -> float:
    losses = run["series"]["loss"]
    return float(np.mean(losses[-max(len(losses) // 4, 1) :]))


def _fall(run: Run) -> float:
    return float(run["probe"]["values"][0] - run["probe"]["values"][-1])


def _gap(mine: float, others: float, fall: float) -> float:
    return (mine - others) / fall
