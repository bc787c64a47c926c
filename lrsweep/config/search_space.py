"""Axes: what a sweep searches. `space` in the config has the same tree as the config; its leaves become axes.

A value has two forms: the config's (0.1, [0.9, 0.999]), and the one that Optuna stores, where a list is JSON text.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrsweep.config.schema import SweepConfig, did_you_mean, is_mapping, key_facts, keys, replace
from lrsweep.errors import InputError

_RANGE_KEYS = {"low", "high", "log", "num", "step"}
# Every point of a grid is validated before the first trial.
_MOST_POINTS = 10_000
# Hydra takes a second to read a thousand.
_MOST_CHOICES = 1000
# The only axis that a sweep may extend.
LR = "optimizer.lr"
# The search methods that know the points that they start with.
GRIDS = ("grid", "refine")
# The groups that people search, each with the key in which its options differ most.
_OPTIONS = {
    "optimizer": "optimizer.name",
    "scheduler": "scheduler.name",
    "finetune": "finetune.mode",
    "model": "model.path",
    "data": "data.path",
    "training": "training.max_steps",
}
# The fewest rates that `refine` starts with over a range, and the values that it tries of another one.
_FEWEST_RATES, _VALUES = 6, 4
# `refine` searches the rate and at most three keys of these groups: trials with all their values can be compared, and
# the best rate stays about where it is.
_REFINED, _NOT_REFINED = ("optimizer.", "scheduler.", "finetune."), ("optimizer.name", "finetune.mode")
_MOST_REFINED = 4


@dataclass(frozen=True)
class Choices:
    """An axis with listed values.

    Attributes:
        key: The dotted config key.
        values: The config's values, in the order given.
        grows: Whether the sweep may add values; only for a grid's learning rates.
    """

    key: str
    values: tuple[Any, ...]
    grows: bool = False

    def points(self) -> tuple[Any, ...]:
        """The values of a grid."""
        return self.values

    def ends(self) -> tuple[Any, ...]:
        """Values that include the lowest and the highest."""
        return self.values

    def value(self, stored: Any) -> Any:
        """The config's value for what Optuna stored."""
        return next(value for value in self.values if to_stored(value) == stored)


@dataclass(frozen=True)
class Range:
    """An axis from `low` to `high`, both included.

    Attributes:
        key: The dotted config key.
        low: The lowest value.
        high: The highest value.
        log: Whether values are spaced by their logarithm.
        integer: Whether values are whole numbers.
        num: The number of grid points; None if there is no grid.
        step: The spacing of sampled values; None is continuous, or 1 for whole numbers.
    """

    key: str
    low: float
    high: float
    log: bool
    integer: bool
    num: int | None
    step: float | None

    def points(self) -> tuple[Any, ...]:
        """`num` values, evenly spaced (in the logarithm if `log`), rounded to 6 digits."""
        if self.num is None:
            raise InputError(f"space.{self.key}: a grid over a range needs its number of points: add num: 5")
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        places = [low + (high - low) * i / max(self.num - 1, 1) for i in range(self.num)]
        values = [float(f"{math.exp(place) if self.log else place:.6g}") for place in places]
        return tuple(dict.fromkeys(round(value) for value in values)) if self.integer else tuple(values)

    def ends(self) -> tuple[Any, ...]:
        """The lowest and the highest value."""
        return self.low, self.high

    def value(self, stored: Any) -> Any:
        """The config's value for what Optuna stored: the same number."""
        return stored


Axis = Choices | Range


def axes(config: SweepConfig) -> tuple[Axis, ...]:
    """The config's axes, with every value checked against the schema. Raises InputError."""
    found = declared(config)
    if not found:
        raise InputError(
            "space is empty: choose a sweep with +sweep=NAME, or an axis with space.optimizer.lr=[1e-5,1e-4]"
        )
    if config.search.method == "refine" and not refinable(found):
        listed = ", ".join(axis.key for axis in found)
        raise InputError(
            "search.method='refine': searches optimizer.lr and at most three other keys of optimizer, scheduler and "
            f"finetune that leave the kind of training as it is, but space has {listed}; use search=auto"
        )
    if config.search.method == "refine":
        found = tuple(_spread(axis) for axis in found)
    if config.search.method in GRIDS:
        points = math.prod(len(axis.points()) for axis in found)
        if points > _MOST_POINTS:
            raise InputError(
                f"space: {points} points, but a grid has at most {_MOST_POINTS}; list fewer values, or use search=tpe "
                "with search.n_trials=..."
            )
        found = tuple(_growing(axis) if axis.key == LR else axis for axis in found)
        for point in grid(found):
            trial_config(config, found, point)
    if config.search.method == "cmaes" and any(isinstance(axis, Choices) for axis in found):
        raise InputError("search.method='cmaes': takes ranges only; write each axis as {low: ..., high: ...}")
    return found


def declared(config: SweepConfig) -> tuple[Axis, ...]:
    """The axes as `space` has them. Raises InputError if one is invalid."""
    found = tuple(_axes(config, config.space, ""))
    keys = [axis.key for axis in found]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        section, name = twice.rsplit(".", 1)
        raise InputError(
            f"space: has {twice} twice, as {{{twice}: ...}} and as {{{section}: {{{name}: ...}}}}; give one of them"
        )
    return found


def refinable(axes: Sequence[Axis]) -> bool:
    """Whether `refine` can search these axes."""
    keys_of = [axis.key for axis in axes]
    others = [key for key in keys_of if key != LR]
    return (
        LR in keys_of
        and len(keys_of) <= _MOST_REFINED
        and all(key.startswith(_REFINED) and key.count(".") == 1 and key not in _NOT_REFINED for key in others)
    )


def reach(config: SweepConfig, key: str) -> tuple[float, float] | None:
    """The lowest and the highest number that the space has for a key; None if it is not an axis of numbers."""
    found = [axis for axis in _axes(config, config.space, "") if axis.key == key]
    numbers = [end for axis in found for end in axis.ends() if isinstance(end, int | float)]
    return (min(numbers), max(numbers)) if numbers else None


def with_more_lrs(axes: Sequence[Axis], lrs: Sequence[float]) -> tuple[Axis, ...]:
    """The axes with `lrs` added to the learning-rate axis, if that may grow."""
    return tuple(
        Choices(axis.key, axis.values + tuple(lrs), grows=True)
        if isinstance(axis, Choices) and axis.key == LR and axis.grows
        else axis
        for axis in axes
    )


def grid(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Every combination of the axes' points, as Optuna stores them; the last axis changes fastest."""
    # Keys that a pack's trials must share change slowest, so that trials that can share a pack are adjacent.
    ordered = sorted(axes, key=lambda axis: key_facts(axis.key).in_pack != "same")
    columns = [[to_stored(value) for value in axis.points()] for axis in ordered]
    points = (dict(zip([axis.key for axis in ordered], row, strict=True)) for row in itertools.product(*columns))
    return [{axis.key: point[axis.key] for axis in axes} for point in points]


def values(axes: Sequence[Axis], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The config's values for one trial's stored parameters."""
    return {axis.key: axis.value(stored[axis.key]) for axis in axes}


def trained(values: Mapping[str, Any], trial: SweepConfig) -> dict[str, Any]:
    """A trial's axis values as trained: with `search.lr_scaling`, the learning rate is the scaled one."""
    scaled = trial.search.lr_scaling != "none"
    return {key: trial.optimizer.lr if key == LR and scaled else value for key, value in values.items()}


def trial_config(
    config: SweepConfig, axes: Sequence[Axis], stored: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> SweepConfig:
    """One trial's config: the sweep's with the trial's values, and with lr scaled as `search.lr_scaling` asks.

    Args:
        config: The sweep's config.
        axes: The sweep's axes.
        stored: The trial's parameters, as Optuna stores them.
        overrides: Config keys that distinguish the trial besides its axes, such as a replicate's seed.

    Raises:
        InputError: The values contradict each other.
    """
    whole = {"training.horizon": None} if config.lengths_searched else {}
    trial = replace(config, {**whole, **values(axes, stored), **(overrides or {})})
    power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[config.search.lr_scaling]
    factor = (_batch(trial) / _batch(config)) ** power
    return replace(trial, {LR: trial.optimizer.lr * factor}) if factor != 1.0 else trial


def _spread(axis: Axis) -> Axis:
    """A range with points: of learning rates on the log scale, half a decade apart, if it does not say how many."""
    if not isinstance(axis, Range):
        return axis
    if axis.key != LR or axis.low <= 0:
        return dataclasses.replace(axis, num=axis.num or _VALUES)
    apart = math.ceil(2 * math.log10(axis.high / axis.low)) + 1
    return dataclasses.replace(axis, log=True, num=axis.num or max(apart, _FEWEST_RATES))


def _growing(axis: Axis) -> Axis:
    """A learning-rate axis as a list of its grid points that may grow."""
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in axis.points()):
        return axis
    return Choices(axis.key, axis.points(), grows=True)


def _batch(config: SweepConfig) -> int:
    return config.training.batch_size * config.training.gradient_accumulation_steps


def _axes(config: SweepConfig, tree: Mapping[str, Any], prefix: str) -> list[Axis]:
    found: list[Axis] = []
    for name, leaf in tree.items():
        key = f"{prefix}{name}"
        if isinstance(leaf, Mapping) and not ({"low", "high"} & leaf.keys()):
            found += _axes(config, leaf, f"{key}.")
        else:
            _check_key(key)
            found.append(_range(config, key, leaf) if isinstance(leaf, Mapping) else _choices(config, key, leaf))
    return found


def refuse_group(key: str) -> None:
    """Raises InputError, with what to write instead, for a config group as an axis."""
    if key in _OPTIONS:
        raise InputError(
            f"space.{key}: is a group, and an axis is one key: write space.{_OPTIONS[key]}=[...], or run a sweep for "
            f"each option ({key}=...)"
        )


def _check_key(key: str) -> None:
    refuse_group(key)
    parents = {key.rsplit(".", depth)[0] for depth in range(1, key.count(".") + 1)}
    if key not in keys() and not any(is_mapping(parent) for parent in parents):
        raise InputError(f"space.{key}: the config has no such key{did_you_mean(key)}")
    if key_facts(key).scope != "trial":
        raise InputError(f"space.{key}: changes nothing that a trial measures, so it cannot be searched")


def _choices(config: SweepConfig, key: str, leaf: Any) -> Choices:
    if not isinstance(leaf, list):
        raise InputError(f"space.{key}={leaf!r}: an axis is a list of choices, or a range {{low: ..., high: ...}}")
    if not leaf:
        raise InputError(f"space.{key}=[]: an axis needs at least one value")
    if len(leaf) > _MOST_CHOICES:
        raise InputError(f"space.{key}: {len(leaf)} choices, but an axis has at most {_MOST_CHOICES}; use a range")
    kept = [to_stored(value) for value in leaf]
    for i, value in enumerate(kept):
        if value in kept[:i]:
            raise InputError(f"space.{key}: {leaf[i]!r} is listed twice")
    for value in leaf:
        _check_value(config, key, value)
    return Choices(key, tuple(leaf))


def _range(config: SweepConfig, key: str, leaf: Mapping[str, Any]) -> Range:
    for name in leaf:
        if name not in _RANGE_KEYS:
            raise InputError(f"space.{key}.{name}: a range has the keys {', '.join(sorted(_RANGE_KEYS))}")
    low, high = leaf.get("low"), leaf.get("high")
    log, num, step = leaf.get("log", False), leaf.get("num"), leaf.get("step")
    for name, number in (("low", low), ("high", high)):
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise InputError(f"space.{key}.{name}={number!r}: must be a finite number")
        _check_value(config, key, number)
    assert low is not None
    assert high is not None
    if not isinstance(log, bool):
        raise InputError(f"space.{key}.log={log!r}: must be true or false")
    if low >= high:
        raise InputError(f"space.{key}: low ({low}) must be below high ({high})")
    if log and low <= 0:
        raise InputError(f"space.{key}.low={low}: a log range starts above 0")
    if num is not None and (isinstance(num, bool) or not isinstance(num, int) or not 2 <= num <= _MOST_POINTS):
        raise InputError(f"space.{key}.num={num!r}: must be a whole number from 2 to {_MOST_POINTS}")
    if step is not None and (log or isinstance(step, bool) or not isinstance(step, int | float) or not step > 0):
        raise InputError(f"space.{key}.step={step!r}: must be a number above 0, and does not go with log")
    integer = _takes_whole_numbers(config, key, low)
    if integer and step is not None and step != round(step):
        raise InputError(f"space.{key}.step={step!r}: {key} takes whole numbers, and so does its step")
    return Range(key, low, high, log, integer, num, step)


def _takes_whole_numbers(config: SweepConfig, key: str, low: float) -> bool:
    if not isinstance(low, int):
        return False
    try:
        replace(config, {key: low + 0.5})
    except InputError:
        return True
    return False


def _check_value(config: SweepConfig, key: str, value: Any) -> None:
    try:
        replace(config, {key: value})
    except InputError as fault:
        if "." not in str(fault).partition(": ")[0]:
            return  # a rule about several keys: checked for each combination, not here
        raise InputError(
            f"space.{fault}" if str(fault).startswith(key) else f"space.{key}={value!r}: {fault}"
        ) from None


def to_stored(value: Any) -> Any:
    """A config value as Optuna stores it."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)
