"""Learning rates beyond those tried, for a best one at the end of the range."""

from collections.abc import Sequence

from lrsweep.analysis.diagnosis import rung

# The most that a whole sweep adds, and the range that they stay in.
_MOST, _LOWEST, _HIGHEST = 12, 1e-9, 10.0


def beyond(tried: Sequence[float], *, up: bool, count: int, added: int) -> list[float]:
    """The next learning rates: steps of 1, 3, 10 if all tried rates are such steps, else in the ratio of the last two.

    Args:
        tried: The learning rates tried, at least two.
        up: Whether to go above the highest, instead of below the lowest.
        count: How many rates are wanted.
        added: How many the sweep has added before.

    Returns:
        The rates; fewer, or none, once the sweep may add no more.
    """
    tried = sorted(tried)
    steps = range(1, count + 1)
    if all(rung(rung(lr, 1), -1) == lr for lr in tried):
        found = [rung(tried[-1], step) if up else rung(tried[0], -step) for step in steps]
    else:
        ratio = tried[-1] / tried[-2] if up else tried[0] / tried[1]
        last = tried[-1] if up else tried[0]
        found = [float(f"{last * ratio**step:.3g}") for step in steps]
    allowed = [lr for lr in found if _LOWEST <= lr <= _HIGHEST and lr not in tried]
    return allowed[: max(_MOST - added, 0)]
