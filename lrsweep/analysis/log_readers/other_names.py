"""Losses under names of their own, in text where no other reader finds any: `loss_vae: 0.2`, `xent: 9.5`, `ppl 41`."""

import math
import re
from collections import Counter
from collections.abc import Iterator

from lrsweep.analysis.log_readers.rows import Row, number
from lrsweep.analysis.log_readers.text import kept, lines_of

# A name, and the number after it.
_NAMED = re.compile(
    r"(?<![\w.])([a-z][\w'-]{0,30}(?: (?:loss|sum|rate|total))?)(?:\s{0,3}[:=]\s{0,9}|\s{1,9})"
    r"([-+]?(?:\d[\d.]*(?:e[-+]?\d+)?|nan|inf))(?![\w:])",
    re.IGNORECASE,
)
_SEPARATORS = re.compile(r"[^a-z]+")
_LOSS = {"loss", "losses", "nll", "xent", "logloss", "perplexity", "ppl"}
_PERPLEXITY = {"perplexity", "ppl"}
_HELD_OUT = {"val", "valid", "validation", "eval", "test", "dev"}
_WHOLE = {"total", "sum", "overall"}
# Two networks against each other: that one loses is no sign of how well they learn.
_ADVERSARIAL = {"d", "g", "gan", "adv", "disc", "discriminator", "gen", "generator", "critic"}
_RATE = {"lr", "learning_rate"}


def losses_by_other_names(text: str) -> Iterator[Row]:
    """Yields the rows of the lines with a loss; of several losses, that which is the whole, or is there most often.

    A log of `train: 719.4 | val: 687.8` has the losses that it names by their rows only. Perplexities become losses.
    """
    lines = [_NAMED.findall(line) for line in kept(lines_of(text))]
    counts = Counter(name.lower() for line in lines for name, _ in line)
    of_training = _chosen([name for name in counts if _is_loss(name) and not _parts(name) & _HELD_OUT], counts)
    of_evaluation = _chosen([name for name in counts if _is_loss(name) and _parts(name) & _HELD_OUT], counts)
    if not of_training and not of_evaluation and counts["train"] and counts["val"]:
        of_training, of_evaluation = "train", "val"
    for line in lines:
        row: Row = {}
        for given, value in line:
            name = given.lower()
            if name in (of_training, of_evaluation):
                row["loss" if name == of_training else "eval_loss"] = _loss(name, value)
            elif name in _RATE:
                row["learning_rate"] = value
        if "loss" in row or "eval_loss" in row:
            yield row


def _parts(name: str) -> set[str]:
    return set(_SEPARATORS.split(name))


def _is_loss(name: str) -> bool:
    parts = _parts(name)
    return bool(parts & _LOSS) and not parts & _ADVERSARIAL


def _chosen(names: list[str], counts: Counter[str]) -> str:
    """The name to read; empty if there is none. Names are in the order of their first lines."""
    return max(
        names, key=lambda name: (not _parts(name) & _PERPLEXITY, bool(_parts(name) & _WHOLE), counts[name]), default=""
    )


def _loss(name: str, value: str) -> float | str:
    found = number(value)
    if not _parts(name) & _PERPLEXITY or found is None or not found > 0:
        return value
    return math.log(found)
