"""A dialect's table: which keys of theirs stand for which of ours. Each row reads and writes, so both directions agree."""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError

Tree = Mapping[str, Any]
Version = tuple[int, int]


@dataclass(frozen=True)
class Row:
    """Keys of `theirs` that stand for keys of `ours`. A key that is absent, or null, means its default.

    `own`: the file's own words stand (the run's length, its evaluation). They are where the sweep starts from, and go back as
    they were, unless one of `ours` was searched. `exclusive`: its keys are ways to say one thing; one that is not used goes.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    read: Callable[[Tree], Tree]
    write: Callable[[SweepConfig], Tree]
    own: bool = False
    exclusive: bool = False

    def says(self, tree: Tree, config: SweepConfig) -> bool:
        """Whether `tree` already says what the config does."""
        try:
            said = self.read(tree)
        except InputError:
            return False
        return all(_plain(get(config, key)) == _plain(value) for key, value in said.items())

    def edits(self, tree: Tree, config: SweepConfig) -> dict[str, Any]:
        """The fewest changes after which `tree` says what the config does; None takes a key out."""
        if self.says(tree, config):
            return {}
        new = self.write(config)
        wanted = {name: new.get(name) for name in self.theirs if new.get(name) != tree.get(name)}
        for name in list(wanted):
            without = {other: value for other, value in wanted.items() if other != name}
            if not (self.exclusive and wanted[name] is None) and self.says(changed(tree, without), config):
                wanted = without
        return wanted

    def part(self, tree: Tree) -> dict[str, Any]:
        """Those of its keys that `tree` has."""
        return {key: tree[key] for key in self.theirs if key in tree}


@dataclass(frozen=True)
class Refusal:
    """Keys whose effect a sweep cannot show, and which it must not drop. `harmless` values have no effect."""

    keys: str
    why: str
    fix: str
    harmless: tuple[Any, ...] = ()

    def check(self, tree: Tree) -> None:
        for key in self.keys.split():
            value = tree.get(key)
            if value is not None and value is not False and value not in self.harmless:
                raise InputError(f"{key}={brief(value)}: {self.why}; {self.fix}")


def saved_at_evaluations(tree: Tree, config: SweepConfig) -> Tree:
    """For trainers that write their log with their checkpoints only: a checkpoint at each evaluation."""
    every = config.training.eval_every
    return {"save_strategy": "steps", "save_steps": every, "save_total_limit": 1, "save_only_model": True}


@dataclass(frozen=True)
class Dialect:
    """A trainer's config language.

    Attributes:
        name: The trainer's name, as in `export --to NAME`.
        rows: The table of keys, for a version of the tool (None: today's).
        refusals: Keys that an import refuses.
        sections: Keys that may hold a mapping; all others are flat.
        complete: Keys that a runnable file needs besides the table's.
        check: Raises InputError for a config that the tool cannot express, or only by silently dropping something.
        notes: What stays as it is in the trainer and differs in trials.
        not_here: Comments on what a file leaves out that did not come from the tool.
        versioned: Whether the keys depend on the tool's version.
        epochs: The key of the run's length in epochs, and its default.
        trial_keys: What the file of a trial under `engine=external` sets, given the trial's own file and config.
    """

    name: str
    rows: Callable[[Version | None], Sequence[Row]]
    refusals: Sequence[Refusal]
    sections: Collection[str]
    complete: Callable[[SweepConfig], Tree]
    check: Callable[[SweepConfig, Version | None], None] = lambda config, version: None
    notes: Callable[[Tree], Sequence[str]] = lambda tree: ()
    not_here: Callable[[SweepConfig], str] = lambda config: ""
    versioned: bool = False
    epochs: tuple[str, float] = ("num_train_epochs", 3.0)
    trial_keys: Callable[[Tree, SweepConfig], Tree] = saved_at_evaluations


@dataclass(frozen=True)
class Imported:
    """What a file says: `values` by our dotted keys; `rest` goes back into an export as it is; `kept` has no equivalent."""

    values: Tree
    rest: Tree
    kept: tuple[str, ...]
    notes: tuple[str, ...]


def key(
    theirs: str,
    ours: str,
    default: Any,
    read: Callable[[str, Any], Any],
    write: Callable[[Any], Any] = lambda value: value,
) -> Row:
    """One key of theirs for one of ours."""

    def reading(tree: Tree) -> Tree:
        value = tree.get(theirs)
        return {ours: default if value is None else read(theirs, value)}

    def writing(config: SweepConfig) -> Tree:
        value = get(config, ours)
        return {} if value is None else {theirs: write(value)}

    return Row((theirs,), (ours,), reading, writing)


def values_of(dialect: Dialect, tree: Tree) -> dict[str, Any]:
    """Our dotted keys, as the file says them. Raises InputError for what is refused or malformed."""
    for refusal in dialect.refusals:
        refusal.check(tree)
    known = {name for row in dialect.rows(None) for name in row.theirs} | set(dialect.sections)
    for name, value in tree.items():
        if isinstance(value, Mapping) and name not in known:
            raise InputError(
                f"{name}: {dialect.name} has no section of that name, its keys are flat; move what it holds up"
            )
        if isinstance(value, str) and re.search(r"((hub|hf|auth|access)_token|api_key|secret|password)$", name):
            raise InputError(
                f"{name}: a secret, which would be written into the sweep; take it out, use the environment"
            )
    values: dict[str, Any] = {}
    for row in dialect.rows(None):
        values |= row.read(tree)
    return values


def rest_of(dialect: Dialect, tree: Tree, config: SweepConfig) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What an export has to give back as it was, and which keys of it have no equivalent here."""
    rest: dict[str, Any] = {}
    known: set[str] = set()
    for row in dialect.rows(None):
        known |= set(row.theirs)
        part = row.part(tree)
        # Also another spelling of the same, and a default that the file spells out, alone or among others.
        if part and (row.own or len(row.theirs) > 1 or row.says({}, config) or dict(row.write(config)) != part):
            rest |= part
    kept = {name: value for name, value in tree.items() if name not in known}
    return rest | kept, tuple(kept)


def written(
    dialect: Dialect, config: SweepConfig, rest: Tree | None, tuned: Collection[str], version: Version | None
) -> dict[str, Any]:
    """The config in their words. With a `rest`, the file it came from: its own words wherever they still hold."""
    dialect.check(config, version)
    tree: dict[str, Any] = {}
    for row in dialect.rows(version):
        if rest is None:
            tree |= row.write(config)
        elif row.own and not set(row.ours) & set(tuned):
            tree |= row.part(rest)
        else:
            part = row.part(rest)
            tree |= changed(part, row.edits(part, config))
    if rest is None:
        return dict(dialect.complete(config)) | tree
    known = {name for row in dialect.rows(None) for name in row.theirs}
    return tree | {name: value for name, value in rest.items() if name not in known}


def edits(
    dialect: Dialect, base: Tree, config: SweepConfig, tuned: Collection[str], version: Version | None
) -> dict[str, Any]:
    """The fewest changes to `base` after which it says the tuned keys as the config does; None takes a key out."""
    dialect.check(config, version)
    changes: dict[str, Any] = {}
    for row in dialect.rows(version):
        if set(row.ours) & set(tuned):
            changes |= row.edits(base, config)
    return changes


def differences(dialect: Dialect, base: Tree, config: SweepConfig, version: Version | None) -> list[str]:
    """Where `base` trains otherwise than the trials did: optimizer, schedule and batch, in its words."""
    found = []
    for row in dialect.rows(version):
        ours = [name for name in row.ours if name.split(".")[0] in ("optimizer", "scheduler", "finetune")]
        ours += [name for name in row.ours if name in ("training.batch_size", "training.gradient_accumulation_steps")]
        if ours and not row.own and not row.says(base, config):
            part = row.part(base) or dict.fromkeys(row.theirs[:1], "its default")
            found.append(", ".join(f"{name}={brief(value)}" for name, value in part.items()))
    return found


def changed(base: Tree, changes: Tree) -> dict[str, Any]:
    """`base` with the changes made."""
    return {name: value for name, value in {**base, **changes}.items() if value is not None or name not in changes}


def get(config: SweepConfig, dotted: str) -> Any:
    """The value of a dotted key."""
    node: Any = config
    for part in dotted.split("."):
        node = getattr(node, part)
    return node


def given(tree: Tree, name: str, default: Any) -> Any:
    """The value of a key of theirs; null is as good as absent."""
    return default if tree.get(name) is None else tree[name]


def number(name: str, value: Any) -> float:
    """A number; a string is read as one, as YAML makes a string of 1e-4."""
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{name}={brief(value)}: not a number; write it as 1.0e-4 or 0.0001")


def whole(name: str, value: Any) -> int:
    """A whole number."""
    found = number(name, value)
    if not math.isfinite(found) or found != int(found):
        raise InputError(f"{name}={brief(value)}: not a whole number; write one")
    return int(found)


def flag(name: str, value: Any) -> bool:
    """True or false."""
    words = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
    if str(value).lower() not in words:
        raise InputError(f"{name}={brief(value)}: neither true nor false; write one of them")
    return words[str(value).lower()]


def word(name: str, value: Any) -> str:
    """Text on one line."""
    if isinstance(value, list | Mapping | bool):
        raise InputError(f"{name}={brief(value)}: not a text; write one")
    return str(value)


def integral(name: str, value: float, tool: str) -> int:
    """A number of ours that `tool` takes as a whole one only."""
    if value != int(value):
        raise InputError(f"{name}={value:g}: {tool} takes whole numbers only; search whole ones")
    return int(value)


def brief(value: Any) -> str:
    """A value in one short line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return {name: _plain(part) for name, part in value.items()} if isinstance(value, Mapping) else value
