"""The parts of a dialect: a table of rows that map a trainer's keys to lrsweep's, and the keys that an import refuses.

A dialect is the config language of one trainer. To add a trainer:

1. Write a module with a `DIALECT`, as in `lrsweep.dialects.transformers`. Its core is a table of `Row`s.
   `lrsweep.dialects.rows` makes the usual ones: `key()` maps one key to one key, and `fixed()` says what the trainer
   always does. A `Row` with its own functions maps several keys together; `exact()` makes it refuse the rest.
2. List the keys that would change training but that a trial does not support as `Refusal`s. An import must never drop
   them silently.
3. Add the dialect to `TRAINERS` in `lrsweep/dialects/__init__.py`. tests/dialects/test_dialect_contract.py tests every
   dialect in `TRAINERS`.

    ROWS = (
        key("learning_rate", "optimizer.lr", 5e-5, number),
        key("betas", "optimizer.betas", [0.9, 0.999], pair, list),
        fixed("mytrainer", {"optimizer.name": "adamw", "optimizer.kwargs": {}, "scheduler.name": "cosine"}),
    )
    DIALECT = Dialect(
        name="mytrainer",
        rows=lambda version: ROWS,
        refusals=(Refusal("use_lion", "trials train with AdamW", "remove it"),),
        sections=(),
        complete=lambda config: {"output_dir": f"{config.name}-run"},
    )

Each row reads and writes, so import and export use the same table and cannot disagree. In this package, `theirs` are
the trainer's top-level keys and `ours` are lrsweep's dotted config keys. A key that is absent or null in the trainer's
file has the trainer's default, which the row that reads it knows.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError

# A parsed config file of a trainer, or a part of one, by the trainer's keys; also values by lrsweep's dotted keys.
Tree = Mapping[str, Any]
# Major and minor version of a trainer.
Version = tuple[int, int]


@dataclass(frozen=True)
class Row:
    """Keys of the trainer that correspond to keys of lrsweep.

    `read` and `write` must be inverses: reading what `write` returned gives the config's values again. Most rows come
    from `rows.key()`.

    Attributes:
        theirs: The trainer's keys; none for what the trainer always does.
        ours: The dotted lrsweep keys that the row depends on or sets.
        read: Maps the trainer's file to values by lrsweep key. It gets the whole file, in which keys may be absent or
            null, and returns only keys of `ours`. Raises InputError for a value that trials do not support.
        write: Maps a config to the trainer's keys and values, only keys of `theirs`. Raises InputError for a config
            that the trainer cannot express.
        keep_file_value: An import takes the file's value (for the run's length and its evaluation) only as the sweep's
            starting point, and an export returns the file's own keys unchanged, unless one of `ours` was searched.
        exclusive: The keys are alternatives, of which at most one may be set: an edit that sets one removes the others.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    read: Callable[[Tree], Tree]
    write: Callable[[SweepConfig], Tree]
    keep_file_value: bool = False
    exclusive: bool = False

    def matches(self, tree: Tree, config: SweepConfig) -> bool:
        """Returns whether the trainer's file already has the config's values; False if it cannot be read."""
        try:
            values = self.read(tree)
        except InputError:
            return False
        return not differing(values, config)

    def edits(self, tree: Tree, config: SweepConfig) -> dict[str, Any]:
        """Returns the fewest changes to the trainer's file after which it has the config's values.

        A value of None removes the key.
        """
        if self.matches(tree, config):
            return {}
        new = self.write(config)
        wanted = {name: new.get(name) for name in self.theirs if new.get(name) != tree.get(name)}
        for name in list(wanted):
            without = {other: value for other, value in wanted.items() if other != name}
            if not (self.exclusive and wanted[name] is None) and self.matches(changed(tree, without), config):
                wanted = without
        return wanted

    def part(self, tree: Tree) -> dict[str, Any]:
        """Returns the row's keys that the trainer's file has, with their values."""
        return {key: tree[key] for key in self.theirs if key in tree}


@dataclass(frozen=True)
class Refusal:
    """Keys that an import refuses because trials do not support their effect.

    Dropping such a key silently would find a learning rate for another training run than the user's.

    Attributes:
        keys: The trainer's keys, separated by spaces.
        why: Why it is refused: the middle part of the message "key=value: why; fix".
        fix: What the user should do.
        harmless: Values without effect, which are accepted. Absent, null and false are always accepted.
    """

    keys: str
    why: str
    fix: str
    harmless: tuple[Any, ...] = ()

    def check(self, tree: Tree) -> None:
        """Checks a trainer's file.

        Raises:
            InputError: One of the keys has a value that is not harmless.
        """
        for key in self.keys.split():
            value = tree.get(key)
            if value is not None and value is not False and value not in self.harmless:
                raise InputError(f"{key}={brief(value)}: {self.why}; {self.fix}")


def logged_at_evaluations(config: SweepConfig, output: str) -> Tree:
    """TrainingArguments' keys for a trial: where it writes, what it logs, when it evaluates."""
    every = config.training.eval_every
    return {"output_dir": output, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": every}


def saved_at_evaluations(tree: Tree, config: SweepConfig, output: str) -> Tree:
    """The same for trainers that write their log only with a checkpoint: one checkpoint at each evaluation."""
    every = config.training.eval_every
    saved = {"save_strategy": "steps", "save_steps": every, "save_total_limit": 1, "save_only_model": True}
    return {**logged_at_evaluations(config, output), **saved}


@dataclass(frozen=True)
class Dialect:
    """The config language of a trainer.

    Attributes:
        name: The trainer's name, as in `export --to NAME`.
        rows: Returns the table of keys for a version of the trainer; None is the current version.
        refusals: Keys that an import refuses.
        sections: The trainer's keys, besides those of the table, whose value may be a mapping. An import refuses
            mappings under other keys.
        complete: Returns the keys that a runnable file needs besides those of the table, for an export without `--base`
            of a sweep that was not imported from this trainer.
        check: Raises InputError for a config that the trainer cannot express, or only by dropping something silently.
        notes: Returns notes on what stays in the trainer's file but differs in trials, for the user of an import. Each
            is a clause without a full stop.
        not_here: Returns comment lines on what an export leaves out, for a sweep that was not imported from this
            trainer.
        versioned: Whether the keys depend on the trainer's version, so that `--target-version` is allowed.
        epochs: The trainer's key for the run's length in epochs, and its default.
        trial_keys: Returns the keys that a trial's file under `engine=external` sets or, with None, removes: where the
            trainer writes, what it logs, when it evaluates. Given the trial's export, its config and its output folder.
            The default is for trainers with TrainingArguments' keys.
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
    trial_keys: Callable[[Tree, SweepConfig, str], Tree] = saved_at_evaluations


def values_of(dialect: Dialect, tree: Tree) -> dict[str, Any]:
    """Reads a trainer's file.

    Args:
        dialect: The trainer's dialect.
        tree: The file's content.

    Returns:
        Values by lrsweep's dotted keys, with the trainer's defaults for absent keys.

    Raises:
        InputError: The file holds a key that is refused, a malformed value, an unknown section or a secret.
    """
    for refusal in dialect.refusals:
        refusal.check(tree)
    known = {name for row in dialect.rows(None) for name in row.theirs} | set(dialect.sections)
    for name, value in tree.items():
        if isinstance(value, Mapping) and name not in known:
            raise InputError(
                f"{name}: {dialect.name} has no section of that name, its keys are flat; move its keys to the top level"
            )
        if isinstance(value, str) and re.search(r"((hub|hf|auth|access)_token|api_key|secret|password)$", name):
            raise InputError(
                f"{name}: a secret, which would be written into the sweep; remove it and use an environment variable"
            )
    values: dict[str, Any] = {}
    for row in dialect.rows(None):
        values |= row.read(tree)
    return values


def rest_of(dialect: Dialect, tree: Tree, config: SweepConfig) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns what an export has to return unchanged.

    Args:
        dialect: The trainer's dialect.
        tree: The imported file's content.
        config: The config that was read from it.

    Returns:
        Keys and values of the file that the config alone would not reproduce, and those of the keys that have no
        lrsweep equivalent.
    """
    rest: dict[str, Any] = {}
    known: set[str] = set()
    for row in dialect.rows(None):
        known |= set(row.theirs)
        part = row.part(tree)
        # This keeps other spellings of the same value too, and defaults that the file gives explicitly.
        if part and (
            row.keep_file_value or len(row.theirs) > 1 or row.matches({}, config) or dict(row.write(config)) != part
        ):
            rest |= part
    kept = {name: value for name, value in tree.items() if name not in known}
    return rest | kept, tuple(kept)


def written(
    dialect: Dialect, config: SweepConfig, rest: Tree | None, tuned: Collection[str], version: Version | None
) -> dict[str, Any]:
    """Writes a config in a trainer's language.

    Args:
        dialect: The trainer's dialect.
        config: The config.
        rest: What `rest_of` kept of the imported file: its spelling is used wherever its values are still right. None
            if the config does not come from a file of this trainer.
        tuned: The dotted keys that were searched.
        version: The trainer's version; None for the current one.

    Raises:
        InputError: The trainer cannot express the config.
    """
    dialect.check(config, version)
    tree: dict[str, Any] = {}
    for row in dialect.rows(version):
        if rest is None:
            tree |= row.write(config)
        elif row.keep_file_value and not set(row.ours) & set(tuned):
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
    """Returns the fewest changes to a user's file after which its tuned keys have the config's values.

    Args:
        dialect: The trainer's dialect.
        base: The content of the user's file.
        config: The config.
        tuned: The dotted keys that were searched. Other keys are not changed.
        version: The trainer's version; None for the current one.

    Returns:
        New values by the trainer's keys; None removes the key.

    Raises:
        InputError: The trainer cannot express the config.
    """
    dialect.check(config, version)
    changes: dict[str, Any] = {}
    for row in dialect.rows(version):
        if set(row.ours) & set(tuned):
            changes |= row.edits(base, config)
    return changes


def differences(dialect: Dialect, base: Tree, config: SweepConfig, version: Version | None) -> list[str]:
    """Returns the keys of a user's file that make it train differently from the trials.

    Only keys of the optimizer, the schedule, fine-tuning and the batch size are compared.

    Returns:
        One text per row, such as `lora_r=8, lora_alpha=16`.
    """
    found = []
    for row in dialect.rows(version):
        ours = [name for name in row.ours if name.split(".")[0] in ("optimizer", "scheduler", "finetune")]
        ours += [name for name in row.ours if name in ("training.batch_size", "training.gradient_accumulation_steps")]
        if ours and not row.keep_file_value and not row.matches(base, config):
            # A row without keys is what the trainer always does.
            default = dict.fromkeys(row.theirs[:1], "its default") or differing(row.read(base), config)
            found.append(", ".join(f"{name}={brief(value)}" for name, value in (row.part(base) or default).items()))
    return found


def changed(base: Tree, changes: Tree) -> dict[str, Any]:
    """Returns a copy of `base` with the changes; None removes a key."""
    return {name: value for name, value in {**base, **changes}.items() if value is not None or name not in changes}


def differing(values: Tree, config: SweepConfig) -> dict[str, Any]:
    """Returns those of the values, by lrsweep's dotted keys, that the config does not have."""
    return {name: value for name, value in values.items() if _plain(get(config, name)) != _plain(value)}


def get(config: SweepConfig, dotted: str) -> Any:
    """Returns a config's value of a dotted key."""
    node: Any = config
    for part in dotted.split("."):
        node = getattr(node, part)
    return node


def brief(value: Any) -> str:
    """Returns a value's repr, cut to 60 characters, for messages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return {name: _plain(part) for name, part in value.items()} if isinstance(value, Mapping) else value
