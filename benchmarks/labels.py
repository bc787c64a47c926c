"""What the labels of the corpus mean, told from what the diagnosis does not see.

Of every run is known what was done to it, its siblings (the same setting at other rates and decays), every step's training
loss, and the probe: the loss of the same held-out rows at sixteen steps, the untouched base's first. A setting's BEST
run is the one, among those without decay, whose probe ends lowest; FALL is by how much the lowest probe of any of them
lies below the base's. Then a run is

- inert: its setting is broken, and the probe never moves.
- diverged: a loss or gradient is not finite.
- over_regularised: decay was added, and both the probe and the training loss end higher than its sibling's without decay
  (same rate, healthy), by over 15 % of that one's fall. If by under 5 %, the run is judged like one without decay.
- overfitting: rows are seen three times or more; the probe falls by over 20 % of FALL, then turns for good (its last third
  stays above the low by over a third of the final rise, and that is over 15 % of its fall and 2 % of the loss) while the
  training loss of the same stretch goes on falling; and at no time is it above its start, that is, in no eighth of the run
  is its mean over 105 % of the base's probe.
- too_high: its rate is above the best's, and the probe comes to lie above the base's by over 15 % of FALL (and 1 % of the
  loss) and ends with under 80 % of FALL; or, not oscillating, it ends with less than half. Where rows are seen three times
  or more, the training loss must come above its start, too.
- oscillating: its rate is above the best's, the probe never rises like that, but after the first fifth of the run takes
  four turns or more and loses over 30 % of FALL on the way up; and a sibling at a fifth to half the rate ends better by over
  10 % of FALL.
- too_low: its rate is below the best's, and the probe falls by less than half of FALL without having turned.
- healthy: the probe ends with over 85 % of FALL, at no time clearly above its start, less than 5 % of FALL above its low, and
  does not swing as an oscillating one does.

They are asked in this order. In a setting whose best rate hardly learns (FALL under 3 % of the base's loss) nothing but
the first two is asked. What is left fits none of them and has no label.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Run = Mapping[str, Any]
# Ways to break training: adapters scaled to nothing, an optimizer whose eps swallows every step, a base without signal.
BROKEN = ("scaled away", "no step", "dead base")


def label_group(kind: str, epochs: float, runs: Sequence[Run]) -> list[str]:
    """A setting's labels, "" for none. `epochs` is how often a run sees each of its rows.

    A run has `lr`, `weight_decay`, `series.loss` (every step), `probe.steps` and `probe.values`.
    """
    if kind in BROKEN:
        assert all(np.ptp(run["probe"]["values"]) < 1e-5 for run in runs), "broken training moved"
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
    """`over_regularised`; `between` where decay matters but not clearly; "" where there is none or it does not matter."""
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
    behind = values[max(low + 1, 2 * len(values) // 3) :]
    if fell < 0.2 * fall or rise < max(0.15 * fell, 0.02 * values[low]) or behind.min() < values[low] + rise / 3:
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
