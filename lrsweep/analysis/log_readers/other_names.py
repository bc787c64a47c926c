"""Losses under names of their own, in text where no other reader finds any: `loss_vae: 0.2`, `xent: 9.5`, `ppl 41`."""

import math
import re
from collections import Counter
from collections.abc import Iterator

from lrsweep.analysis.log_readers.rows import Row
from lrsweep.analysis.log_readers.text import kept, lines_of

# A number that nothing follows which would make it another: no unit, no second colon of a time, no share.
_NUMBER = r"([-+]?(?>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?(?:e[-+]?\d+)?|nan|inf))(?!\w|%|:\d)"
# A name, with the rows that it is of before it, and the number after it.
_NAMED = re.compile(
    r"(?<![\w.-])((?:(?:train|training|val|valid|validation|eval|test|dev) )?[a-z][\w'-]{0,30}"
    rf"(?: (?:loss|sum|rate|total))?)(?:\s{{0,3}}[:=]\s{{0,9}}|\s{{1,9}}){_NUMBER}",
    re.IGNORECASE,
)
# `train: 719.4 | val: 687.8`.
_PAIR = re.compile(rf"\btrain\s?[:=]?\s{{0,9}}{_NUMBER}.{{0,99}}?\bval\s?[:=]?\s{{0,9}}{_NUMBER}", re.IGNORECASE)
_SEPARATORS = re.compile(r"[^a-z]+")
_LOSS = {"loss", "losses", "nll", "xent", "logloss", "perplexity", "ppl"}
_PERPLEXITY = {"perplexity", "ppl"}
_HELD_OUT = {"val", "valid", "validation", "eval", "test", "dev"}
_WHOLE = {"total", "sum", "overall"}
# What is named after a loss and is none, or that of another step.
_NONE = {"scale", "weight", "weights", "coef", "rate", "factor", "ratio", "no", "packet", "best", "min", "lowest"}
# Two networks against each other: that one loses is no sign of how well they learn.
_ADVERSARIAL = {"d", "g", "gan", "adv", "disc", "discriminator", "gen", "generator", "critic"}
_PLACES = {"step": "step", "iter": "step", "iteration": "step", "epoch": "epoch", "lr": "learning_rate"}
_BEST = re.compile(r"\b(?:best|min|lowest)\b.{1,40}?\d[\d.]*", re.IGNORECASE)
# A line with these has numbers of the rows that are no losses.
_OTHER_MEASURES = re.compile(r"\b(?:acc|accuracy|f1|auc|score|took|time|fold|samples|rows|examples)\b", re.IGNORECASE)


def losses_by_other_names(text: str) -> Iterator[Row]:
    """Yields the rows of the lines with a loss; of several losses, that which is the whole, or is there most often.

    A log of `train: 719.4 | val: 687.8` has the losses that it names by their rows only. Perplexities become losses.
    """
    lines = [_BEST.sub("", line) for line in kept(lines_of(text))]
    named = [[(name.lower(), value) for name, value in _NAMED.findall(line)] for line in lines]
    counts = Counter(name for pairs in named for name, _ in pairs)
    of_training = _chosen([name for name in counts if _is_loss(name) and not _parts(name) & _HELD_OUT], counts)
    of_evaluation = _chosen([name for name in counts if _is_loss(name) and _parts(name) & _HELD_OUT], counts)
    for line, pairs in zip(lines, named, strict=True):
        row: Row = {}
        for name, value in pairs:
            if name == of_training:
                row.setdefault("loss", _loss(name, value))
            elif name == of_evaluation:
                row.setdefault("eval_loss", _loss(name, value))
            elif name in _PLACES:
                row.setdefault(_PLACES[name], value)
        if not of_training and not of_evaluation and (pair := _PAIR.search(line)) and not _OTHER_MEASURES.search(line):
            train, val = pair.groups()
            if "." in train and "." in val:
                row |= {"loss": train, "eval_loss": val}
        if "loss" in row or "eval_loss" in row:
            yield row


def _parts(name: str) -> set[str]:
    return set(_SEPARATORS.split(name))


def _is_loss(name: str) -> bool:
    parts = _parts(name)
    return bool(parts & _LOSS) and not parts & (_NONE | _ADVERSARIAL)


def _chosen(names: list[str], counts: Counter[str]) -> str:
    """The name to read; empty if there is none. Names are in the order of their first lines."""
    return max(
        names, key=lambda name: (not _parts(name) & _PERPLEXITY, bool(_parts(name) & _WHOLE), counts[name]), default=""
    )


def _loss(name: str, value: str) -> float:
    found = float(value.replace(",", ""))
    return math.log(found) if _parts(name) & _PERPLEXITY and found > 0 else found
