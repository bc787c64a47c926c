"""A trial's loss on each row of the eval set: eval_rows.json, from which the noise of the eval set is estimated."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrsweep.files.atomic import write_text


@dataclass(frozen=True)
class RowLosses:
    """The cross-entropy of each eval row, in an order that is the same for all trials of an eval set.

    Attributes:
        sums: The cross-entropy summed over the row's label tokens, in nats, for each row.
        tokens: The number of the row's label tokens, for each row.
    """

    sums: Sequence[float]
    tokens: Sequence[int]

    @property
    def mean(self) -> float:
        """The mean over all label tokens, whatever their row: the eval loss, in nats."""
        return sum(self.sums) / sum(self.tokens)


def write_row_losses(trial_folder: Path, losses: RowLosses) -> None:
    """Writes eval_rows.json. Raises StorageError."""
    tree = {"sums": [round(value, 6) for value in losses.sums], "tokens": list(losses.tokens)}
    write_text(trial_folder / "eval_rows.json", json.dumps(tree))


def read_row_losses(trial_folder: Path) -> RowLosses | None:
    """Reads eval_rows.json; None if there is none, or it is damaged."""
    if not (trial_folder / "eval_rows.json").is_file():
        return None  # a pipe would block
    try:
        tree = json.loads((trial_folder / "eval_rows.json").read_text(encoding="utf-8"))
        losses = RowLosses(tuple(map(float, tree["sums"])), tuple(map(int, tree["tokens"])))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return losses if len(losses.sums) == len(losses.tokens) and sum(losses.tokens) > 0 else None
