"""How much the choice of eval rows moves the difference between two trials: a bootstrap over the rows."""

from dataclasses import dataclass

import numpy as np

from lrsweep.files.row_losses import RowLosses

# With fewer rows, a few of them decide the answer.
FEW_ROWS = 16
_RESAMPLES = 1000


@dataclass(frozen=True)
class RowNoise:
    """The uncertainty of a difference of two eval losses that comes from the choice of eval rows.

    Attributes:
        deviation: Standard deviation of the difference, in nats per token.
        rows: The number of eval rows.
    """

    deviation: float
    rows: int


def row_noise(one: RowLosses | None, other: RowLosses | None) -> RowNoise | None:
    """Bootstraps the difference of two trials' eval losses over the rows of their eval set.

    Both trials are measured on each drawn row, so a row that is hard for both adds nothing.

    Args:
        one: A trial's losses on the rows; None if they are not known.
        other: Another trial's.

    Returns:
        The noise; None if the rows are not known, are not the same, or are fewer than two.
    """
    if one is None or other is None or one.tokens != other.tokens or len(one.tokens) < 2:
        return None
    tokens = np.array(one.tokens, dtype=np.float64)
    gaps = np.array(one.sums) - np.array(other.sums)
    from scipy.stats import bootstrap

    found = bootstrap(
        (gaps, tokens),
        lambda gap, count, axis: gap.sum(axis) / count.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=0,
    )
    return RowNoise(float(found.standard_error), len(tokens))
