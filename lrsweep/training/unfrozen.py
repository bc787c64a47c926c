"""Trains the parameters that patterns name, or rows of them, as Axolotl does with `unfrozen_parameters`."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from lrsweep.config.patterns import ParameterPattern
from lrsweep.errors import InputError

# The rows of a parameter that stay frozen: pairs of the first and the one after the last.
Rows = Sequence[tuple[int, int]]
_KEY = "finetune.unfrozen_parameters"


def unfreeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Selects the parameters to train; frozen rows of them get gradients of zero.

    Args:
        model: The model; it is changed in place.
        patterns: The patterns.

    Raises:
        InputError: As `unfrozen`.
    """
    chosen = unfrozen(model, patterns)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in chosen)
        if frozen := chosen.get(name):
            weight.register_hook(_without(frozen))  # type: ignore[no-untyped-call]


def unfrozen(model: nn.Module, patterns: Sequence[str]) -> Mapping[str, Rows]:
    """The parameters to train by name, each with its frozen rows.

    A pattern that names none is ignored, as in Axolotl: `lm_head` is no parameter of a model with tied embeddings.

    Args:
        model: The model.
        patterns: The patterns. A range of one of them counts for a parameter, even if another names all of it.

    Raises:
        InputError: No pattern names a parameter, or one names rows that a parameter does not have.
    """
    named = dict(model.named_parameters())
    ranges: dict[str, list[tuple[int, int]]] = {}
    for text in patterns:
        pattern = ParameterPattern.parse(text)
        for name in filter(pattern.names.match, named):
            ranges.setdefault(name, [])
            if pattern.rows is not None:
                count, (start, stop) = next(iter(named[name].shape), 0), pattern.rows
                stop = count if stop is None else stop
                if not start < stop <= count:
                    raise InputError(f"{_KEY}: {text!r}: {name} has {count} rows; give a range of them")
                ranges[name].append((start, stop))
    if patterns and not ranges:
        raise InputError(
            f"{_KEY}: {', '.join(map(repr, patterns))}: the start of no parameter's name, such as "
            f"{', '.join(_examples(named))}; correct one"
        )
    return {name: _between(kept, len(named[name])) if kept else () for name, kept in ranges.items()}


def _examples(names: Mapping[str, nn.Parameter]) -> list[str]:
    """Some names that show how the model's parameters are called."""
    found = list(names)
    return list(dict.fromkeys((found[0], found[len(found) // 2], found[-1])))


def _between(kept: Rows, count: int) -> Rows:
    """The rows of `count` that are in none of these ranges."""
    found, end = [], 0
    for start, stop in sorted(kept):
        if start > end:
            found.append((end, start))
        end = max(end, stop)
    return (*found, (end, count)) if end < count else tuple(found)


def _without(frozen: Rows) -> Callable[[torch.Tensor], torch.Tensor]:
    def zeroed(gradient: torch.Tensor) -> torch.Tensor:
        # The gradient may belong to another parameter too.
        gradient = gradient.clone()
        for start, stop in frozen:
            gradient[start:stop] = 0
        return gradient

    return zeroed
