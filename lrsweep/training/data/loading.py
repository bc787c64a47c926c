"""The data of a fine-tune: rows from a file or the hub, tokenised, masked, split. The same for every engine."""

import hashlib
import os
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lrsweep.config.trial_schema import DataConfig
from lrsweep.errors import InputError
from lrsweep.training.data import dataset_info
from lrsweep.training.data.collate import IGNORED, Example, collate, pack
from lrsweep.training.data.encoding import Encoder
from lrsweep.training.data.formats import check_columns
from lrsweep.training.data.reading import Given, Rows, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["IGNORED", "Example", "FinetuneData", "check_paths", "collate", "load"]

EMBEDDED = "embedded"
# Not a trial's seed: every trial is to see the same eval set and the same rows.
SPLIT_SEED = 0


@dataclass(frozen=True)
class FinetuneData:
    """Tokenised train and eval sets. `train` holds packed blocks under `data.packing`, `evaluation` never does.

    `fingerprint` (SHA-256, hex) covers every token and label of both; `source` is the config's path(s), for people;
    `dropped` counts the rows left out because `data.max_length` cut off all they have to learn, `cut` those that lost
    their end.
    """

    train: Sequence[Example]
    evaluation: Sequence[Example]
    fingerprint: str
    source: str
    dropped: int
    cut: int


def check_paths(config: DataConfig) -> None:
    """Raises InputError for what is wrong with the config's files as they lie there; reads no row, imports no library."""
    check_columns(config.format, config.columns)
    if config.format == "llamafactory":
        _check_dataset_info(config)
        return
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
    """Read, split, cap, tokenise and, where asked, pack.

    The eval set is `eval_path`; or split `eval_split` of `path`; or the share `eval_fraction` of its rows, at least one,
    the same rows in every trial. The caps take random rows, also the same ones in every trial. `embedded` brings its
    own eval set. Raises InputError: bad config, file or row (FILE:LINE), or nothing left to learn.
    """
    check_paths(config)
    encoder = Encoder.of(tokenizer, config)
    train, train_order, evaluation, eval_order = _split(config)
    train_examples, train_dropped, train_cut = encoder.encode(train, train_order[: config.max_train_rows], "train")
    eval_examples, eval_dropped, eval_cut = encoder.encode(evaluation, eval_order[: config.max_eval_rows], "eval")
    if config.packing:
        train_examples = pack(train_examples, config.max_length)
    return FinetuneData(
        train=tuple(train_examples),
        evaluation=tuple(eval_examples),
        fingerprint=_fingerprint(train_examples, eval_examples),
        source=config.path if config.eval_path is None else f"{config.path}, eval {config.eval_path}",
        dropped=train_dropped + eval_dropped,
        cut=train_cut + eval_cut,
    )


def count_rows(config: DataConfig) -> int | None:
    """How many rows `path` holds, before any is held out or left out; None where that takes the hub."""
    if config.format == "llamafactory":
        if any(entry.on_hub for entry in dataset_info.entries(config.path, config.name or "", "data.name")):
            return None
        return len(_dataset_info_rows(config)[0])
    source = Source("data.path", config.path, config.name, config.split)
    return None if source.local is None else len(source.open())


def first_row(config: DataConfig) -> object:
    """The first row as it is; None where that takes the hub."""
    source = Source("data.path", config.path, config.name, config.split)
    return None if source.local is None else next(iter(source.open().read([0])))


def _check_dataset_info(config: DataConfig) -> None:
    if config.name is None:
        raise InputError("data.name: missing; format llamafactory takes the names of data sets, as in dataset: there")
    dataset_info.check(config.path, config.name, "data.name")
    if config.eval_name is not None:
        dataset_info.check(config.path, config.eval_name, "data.eval_name")
    elif config.eval_fraction == 0:
        raise InputError("data.eval_fraction=0.0: no eval rows; set it above 0, or set data.eval_name")


def _sources(config: DataConfig) -> tuple[Source | None, Source | None]:
    """Where train and eval rows come from. No train source: the embedded rows. No eval source: a share of the train's."""
    train = Source("data.path", config.path, config.name, config.split) if config.path != EMBEDDED else None
    if config.eval_path is not None:
        return train, Source("data.eval_path", config.eval_path, None, config.eval_split or "train")
    if config.eval_split is not None and train is not None:
        return train, Source("data.path", config.path, config.name, config.eval_split)
    return train, None


def _same(train: Source, evaluation: Source) -> bool:
    return train.split == evaluation.split and os.path.realpath(train.path) == os.path.realpath(evaluation.path)


def _split(config: DataConfig) -> tuple[Rows, list[int], Rows, list[int]]:
    """Train rows and the order to take them in, then the same for eval rows."""
    train: Rows
    evaluation: Rows | None = None
    source, eval_source = (None, None) if config.format == "llamafactory" else _sources(config)
    if config.format == "llamafactory":
        train, evaluation = _dataset_info_rows(config)
    elif source is None:
        from lrsweep.embedded import corpus

        train_rows, eval_rows = corpus.rows()
        train, evaluation = Given("embedded train rows", train_rows), Given("embedded eval rows", eval_rows)
    else:
        train = source.open()
    if eval_source is not None:
        evaluation = eval_source.open()
    order = _shuffled(len(train))
    if evaluation is not None:
        return train, order, evaluation, _shuffled(len(evaluation))
    held_out = max(1, round(len(train) * config.eval_fraction))
    if held_out >= len(train):
        raise InputError(
            f"data.path={config.path}: {len(train)} row(s) with data.eval_fraction={config.eval_fraction} leave nothing "
            "to train on; give more rows or a data.eval_path"
        )
    return train, order[held_out:], train, order[:held_out]


def _dataset_info_rows(config: DataConfig) -> tuple[Rows, Rows | None]:
    first = config.max_rows_per_set
    train = dataset_info.open_sets(config.path, config.name or "", "data.name", first, SPLIT_SEED)
    if config.eval_name is None:
        return train, None
    return train, dataset_info.open_sets(config.path, config.eval_name, "data.eval_name", first, SPLIT_SEED)


def _shuffled(count: int) -> list[int]:
    order = list(range(count))
    random.Random(SPLIT_SEED).shuffle(order)
    return order


def _fingerprint(*sets: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for examples in sets:
        digest.update(array("q", [len(examples)]))
        for example in examples:
            for numbers in (example.input_ids, example.labels, example.segments):
                digest.update(array("q", [len(numbers), *numbers]))
    return digest.hexdigest()
