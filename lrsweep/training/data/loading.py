"""Loads the fine-tuning data for every engine: rows from files or the hub are read, split, tokenised and labelled."""

import hashlib
import os
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lrsweep.config.trial_schema import DataConfig
from lrsweep.errors import InputError
from lrsweep.training.data import dataset_info, trainer_rows
from lrsweep.training.data.axolotl_chat import TOKENIZERS_OWN, check_name
from lrsweep.training.data.collate import IGNORED, Example, collate, pack
from lrsweep.training.data.encoding import Encoder
from lrsweep.training.data.formats import ALPACA_TEMPLATES, check_columns
from lrsweep.training.data.reading import Rows, Source, TableRows
from lrsweep.training.data.tokens import TokenRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["IGNORED", "Example", "FinetuneData", "check_paths", "collate", "load"]

EMBEDDED = "embedded"
# Not the trial's seed: all trials must have the same rows and the same eval set.
SPLIT_SEED = 0


@dataclass(frozen=True)
class FinetuneData:
    """The tokenised train and eval sets.

    Attributes:
        train: The training set; with `data.packing` in packed blocks.
        evaluation: The eval set, never packed.
        fingerprint: The SHA-256 of all tokens and labels of both, in hex.
        source: The config's path or paths, for display.
        dropped: How many rows were left out because `data.max_length` cut off all they have to learn.
        cut: How many of the other rows lost their end to `data.max_length`.
    """

    train: Sequence[Example]
    evaluation: Sequence[Example]
    fingerprint: str
    source: str
    dropped: int
    cut: int


def check_paths(config: DataConfig) -> None:
    """Checks the data's config and files as far as possible without reading a row or importing a slow library.

    Args:
        config: The data's config.

    Raises:
        InputError: A file is missing or of an unknown type, keys contradict each other, or there are no eval rows.
    """
    check_columns(config.format, config.columns)
    if config.tokenized_by is not None:
        trainer_rows.python_of(config)
        return
    if config.format == "llamafactory":
        _check_dataset_info(config)
        return
    if config.format == "axolotl":
        check_name(config.template or TOKENIZERS_OWN, "data.template")
        if config.train_on_prompt:
            raise InputError("data.train_on_prompt=true: format axolotl learns answers only; use format messages")
    if config.format == "alpaca" and config.template is not None and config.template not in ALPACA_TEMPLATES:
        raise InputError(
            f"data.template={config.template}: for format alpaca it is one of {', '.join(ALPACA_TEMPLATES)}, or null"
        )
    train, evaluation = _sources(config)
    if train is None:
        if config.format != "prompt_completion" or config.columns:
            raise InputError(
                "data.path=embedded: its rows are prompt_completion; set data.format so, and no data.columns"
            )
    else:
        train.check()
    if evaluation is not None:
        evaluation.check()
        if train is not None and _same(train, evaluation):
            raise InputError(
                f"{evaluation}: the eval rows are the training rows; give other rows, or null to split some off"
            )
    elif train is not None and config.eval_fraction == 0:
        raise InputError("data.eval_fraction=0.0: no eval rows; set it above 0, or set data.eval_path")


def load(config: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> FinetuneData:
    """Reads, splits, limits and tokenises the rows, and packs them if `data.packing` is on.

    The eval set is `eval_path`; else the split `eval_split` of `path`; else the share `eval_fraction` of its rows, at
    least one. `embedded` has its own eval set. `max_train_rows` and `max_eval_rows` select random rows. All random
    choices are the same in every trial.

    Args:
        config: The data's config.
        tokenizer: The model's tokenizer.

    Raises:
        InputError: The config, a file or a row (FILE:LINE) is bad, or nothing is left to learn.
    """
    check_paths(config)
    source = config.path if config.eval_path is None else f"{config.path}, eval {config.eval_path}"
    if config.tokenized_by is not None:
        config = trainer_rows.made(config, tokenizer)
        check_paths(config)
    encoder = (TokenRows if config.format == "tokens" else Encoder).of(tokenizer, config)
    train, train_rows, evaluation, eval_rows = _split(config)
    train_examples, train_dropped, train_cut = encoder.encode(train, train_rows[: config.max_train_rows], "train")
    eval_examples, eval_dropped, eval_cut = encoder.encode(evaluation, eval_rows[: config.max_eval_rows], "eval")
    if config.packing:
        train_examples = pack(train_examples, config.max_length)
    return FinetuneData(
        train=tuple(train_examples),
        evaluation=tuple(eval_examples),
        fingerprint=_fingerprint(train_examples, eval_examples),
        source=source,
        dropped=train_dropped + eval_dropped,
        cut=train_cut + eval_cut,
    )


def held_out_rows(config: DataConfig, rows: int) -> int:
    """How many of `rows` rows are held out for evaluation, at least one."""
    share = config.eval_fraction
    return int(share) if share >= 1 else max(1, round(rows * share))


def count_rows(config: DataConfig) -> int | None:
    """How many rows `data.path` has in all. None if they are on the hub, or another trainer has yet to make them.

    Args:
        config: The data's config.

    Raises:
        InputError: The file is missing or bad.
    """
    if config.tokenized_by is not None:
        return None
    if config.format == "llamafactory":
        if config.path.startswith(dataset_info.ON_HUB):
            return None
        if any(entry.on_hub for entry in dataset_info.entries(config.path, config.name or "", "data.name")):
            return None
        return len(_dataset_info_rows(config)[0])
    source = Source("data.path", config.path, config.name, config.split)
    return None if source.local is None else len(source.open())


def first_row(config: DataConfig) -> object:
    """The first row of `data.path`, as it was read. None if it is on the hub.

    Args:
        config: The data's config.

    Raises:
        InputError: The file is missing or bad.
    """
    source = Source("data.path", config.path, config.name, config.split)
    return None if source.local is None else next(iter(source.open().read([0])))


def _check_dataset_info(config: DataConfig) -> None:
    if config.name is None:
        raise InputError(
            "data.name: missing; format llamafactory takes the names of data sets, as its key dataset does"
        )
    dataset_info.check(config.path, config.name, "data.name")
    if config.eval_name is not None:
        dataset_info.check(config.path, config.eval_name, "data.eval_name")
    elif config.eval_fraction == 0:
        raise InputError("data.eval_fraction=0.0: no eval rows; set it above 0, or set data.eval_name")


def _sources(config: DataConfig) -> tuple[Source | None, Source | None]:
    """The sources of train rows (None: the embedded rows) and of eval rows (None: a share of the train rows)."""
    train = Source("data.path", config.path, config.name, config.split) if config.path != EMBEDDED else None
    if config.eval_path is not None:
        return train, Source("data.eval_path", config.eval_path, None, config.eval_split or "train")
    if config.eval_split is not None and train is not None:
        return train, Source("data.path", config.path, config.name, config.eval_split)
    return train, None


def _same(train: Source, evaluation: Source) -> bool:
    if train.split != evaluation.split:
        return False
    one, other = train.local, evaluation.local
    if one is None or other is None or not (os.path.exists(one) and os.path.exists(other)):
        return train.path == evaluation.path
    return os.path.samefile(one, other)  # by a link of either kind too


def _split(config: DataConfig) -> tuple[Rows, list[int], Rows, list[int]]:
    """The train rows and their numbers in the order to take them in, then the same for the eval rows."""
    train: Rows
    evaluation: Rows | None = None
    source, eval_source = (None, None) if config.format == "llamafactory" else _sources(config)
    if config.format == "llamafactory":
        train, evaluation = _dataset_info_rows(config)
    elif source is None:
        from lrsweep.embedded import corpus

        train_rows, eval_rows = corpus.rows()
        train, evaluation = TableRows("embedded train rows", train_rows), TableRows("embedded eval rows", eval_rows)
    else:
        train = source.open()
    if eval_source is not None:
        evaluation = eval_source.open()
    numbers = _shuffled(len(train))
    if evaluation is not None:
        return train, numbers, evaluation, _shuffled(len(evaluation))
    held_out = held_out_rows(config, len(train))
    if held_out >= len(train):
        raise InputError(
            f"data.path={config.path}: {len(train)} row(s) with data.eval_fraction={config.eval_fraction} leave "
            "nothing to train on; give more rows or a data.eval_path"
        )
    return train, numbers[held_out:], train, numbers[:held_out]


def _dataset_info_rows(config: DataConfig) -> tuple[Rows, Rows | None]:
    """The train rows of a dataset_info.json, and the eval rows if `data.eval_name` has them."""
    first = config.max_rows_per_set
    train = dataset_info.open_sets(config.path, config.name or "", "data.name", first, SPLIT_SEED)
    if config.eval_name is None:
        return train, None
    return train, dataset_info.open_sets(config.path, config.eval_name, "data.eval_name", first, SPLIT_SEED)


def _shuffled(count: int) -> list[int]:
    """The numbers below `count` in random order, the same in every trial."""
    numbers = list(range(count))
    random.Random(SPLIT_SEED).shuffle(numbers)  # noqa: S311 - reproducible sampling, not cryptography
    return numbers


def _fingerprint(*sets: Sequence[Example]) -> str:
    """The SHA-256 of all tokens, labels and segments, in hex."""
    digest = hashlib.sha256()
    for examples in sets:
        digest.update(array("q", [len(examples)]))
        for example in examples:
            for numbers in (example.input_ids, example.labels, example.segments):
                digest.update(array("q", [len(numbers), *numbers]))
    return digest.hexdigest()
