"""The parts of a dialect: a table of rows that map a trainer's keys to lrsweep's, and the keys that an import refuses.

A dialect is the config language of one trainer. To add a trainer:

1. Write a module with a `DIALECT`, as in `lrsweep.dialects.transformers`. Its core is a table of `Row`s.
   `lrsweep.dialects.rows` makes the usual ones: `key()` maps one key to one key, and `fixed()` says what the trainer
   always does. A `Row` with its own functions maps several keys together; `exact()` makes it refuse the rest.
2. List the keys that would change training but that a trial does not support as `Refusal`s, each with its reason, and
   the keys that change nothing that a trial measures as `harmless`. A file with a refused key, or with a key that is in
   no list, is swept by the user's own command instead: an import never drops a key silently.
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
        harmless="output_dir",
        their_run=lambda tree, command: TheirRun(command or "mytrainer {config}"),
        complete=lambda config: {"output_dir": f"{config.name}-run"},
    )

Each row reads and writes, so import and export use the same table and cannot disagree. In this package, `theirs` are
the trainer's top-level keys and `ours` are lrsweep's dotted config keys. A key that is absent or null in the trainer's
file has the trainer's default, which the row that reads it knows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

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
        harmless: Values without effect, which are accepted. Absent and null are always accepted.
        off: Whether false is accepted too: it is not for what is on by default.
    """

    keys: str
    why: str
    fix: str
    harmless: tuple[Any, ...] = ()
    off: bool = True

    def faults(self, tree: Tree) -> list[InputError]:
        """Returns an error for each of the keys whose value in a trainer's file is not harmless."""
        return [
            InputError(f"{key}={brief(value)}: {self.why}; {self.fix}")
            for key in self.keys.split()
            if (value := tree.get(key)) is not None and not self._accepts(value)
        ]

    def _accepts(self, value: Any) -> bool:
        return self.off if value is False else value in self.harmless


@dataclass(frozen=True)
class TheirRun:
    """How a file's own trainer runs it, for a sweep of the user's own command.

    Attributes:
        command: The command line, with `{config}` for the config file.
        metric: What to rank its runs by: the name under which the trainer logs it.
        direction: Whether the lowest or the highest is best.
        lr: The learning rate of a file that gives none; None for the one that the dialect's table has.
        method: The kind of training if trials of our engines cannot do it, such as `trl dpo`; None for supervised
            fine-tuning.
        evaluates: Whether this kind of training can be evaluated on held-out rows.
        guess: What the kind of training was taken for, and how to say otherwise; empty if the file tells.
    """

    command: str
    metric: str = "eval_loss"
    direction: Literal["minimize", "maximize"] = "minimize"
    lr: float | None = None
    method: str | None = None
    evaluates: bool = True
    guess: str = ""


# The method of a run whose command is not one of the trainer's: nothing here knows what it does.
OWN_SCRIPT = "your own script"


def evaluated(tree: Tree, config: SweepConfig) -> Tree:
    """TrainingArguments' keys for a trial's evaluations."""
    return {"eval_strategy": "steps", "eval_steps": config.training.eval_every}


def saved_at_evaluations(tree: Tree, config: SweepConfig, output: str) -> Tree:
    """TrainingArguments' keys for a trial whose trainer writes its log with a checkpoint: one at each evaluation."""
    every = config.training.eval_every
    saved = {"save_strategy": "steps", "save_steps": every, "save_total_limit": 1, "save_only_model": True}
    return {"output_dir": output, "logging_steps": 1, **saved}


def with_model(tree: Tree, model: str | None, data_dir: str | None) -> Tree:
    """Returns a file of TrainingArguments with another model; it names no data."""
    if data_dir is not None:
        raise InputError("--data-dir: this file names no data; set data.path when you run the sweep")
    return tree if model is None else {**tree, "model_name_or_path": model}


@dataclass(frozen=True)
class Dialect:
    """The config language of a trainer.

    Attributes:
        name: The trainer's name, as in `export --to NAME`.
        rows: Returns the table of keys for a version of the trainer; None is the current version.
        refusals: Keys that change training in a way that trials of our engines do not support.
        harmless: The trainer's keys, separated by spaces, that change nothing that a trial measures (`harmless_keys`).
            A key that is neither here nor in the table keeps our engines from training the file.
        their_run: Returns how the trainer itself runs a file, given the file and the user's command, if there is one.
        complete: Returns the keys that a runnable file needs besides those of the table, for an export without `--base`
            of a sweep that was not imported from this trainer.
        check: Raises InputError for a config that the trainer cannot express, or only by dropping something silently.
        notes: Returns notes on what stays in the trainer's file but differs in trials, for the user of an import. Each
            is a clause without a full stop.
        not_here: Returns comment lines on what an export leaves out, for a sweep that was not imported from this
            trainer.
        versioned: Whether the keys depend on the trainer's version, so that `--target-version` is allowed.
        formats: The columns by which the trainer tells a row's format where the file does not give it, by our format.
        epochs: The trainer's key for the run's length in epochs, and its default.
        trial_keys: Returns the keys that a trial's file under `engine=external` sets or, with None, removes: where the
            trainer writes and what it logs. Given the trial's export, its config and its output folder. The default is
            for trainers with TrainingArguments' keys.
        evaluation_keys: The same for when and on what a trial is evaluated.
        does_not_train: Returns why the trainer itself would not train a file; None if it would.
        relocated: Returns a file with another place of the model or of the data, each None to leave it.
        config_argument: How the trainer's command takes its config file.
        rows_of: Returns how many rows a file trains on, where the trainer itself makes them; None if that is not known
            here.
    """

    name: str
    rows: Callable[[Version | None], Sequence[Row]]
    refusals: Sequence[Refusal]
    harmless: str
    their_run: Callable[[Tree, str | None], TheirRun]
    complete: Callable[[SweepConfig], Tree]
    check: Callable[[SweepConfig, Version | None], None] = lambda config, version: None
    notes: Callable[[Tree], Sequence[str]] = lambda tree: ()
    not_here: Callable[[SweepConfig], str] = lambda config: ""
    versioned: bool = False
    formats: Mapping[str, frozenset[str]] = field(default_factory=dict)
    epochs: tuple[str, float] = ("num_train_epochs", 3.0)
    trial_keys: Callable[[Tree, SweepConfig, str], Tree] = saved_at_evaluations
    evaluation_keys: Callable[[Tree, SweepConfig], Tree] = evaluated
    does_not_train: Callable[[Tree], str | None] = lambda tree: None
    relocated: Callable[[Tree, str | None, str | None], Tree] = with_model
    config_argument: str = "{config}"
    rows_of: Callable[[Tree], int | None] = lambda tree: None


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
