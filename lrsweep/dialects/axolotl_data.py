"""Axolotl's data keys: which rows trials read themselves, and which Axolotl itself reads and tokenises for them."""

import math
from collections.abc import Mapping
from typing import Any

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects.data_keys import held_out, rows_in
from lrsweep.dialects.mapping import Tree, brief
from lrsweep.dialects.rows import given, number, whole, word
from lrsweep.dialects.training_arguments import mapping_of
from lrsweep.errors import InputError
from lrsweep.training.data.axolotl_chat import TOKENIZERS_OWN, check_name
from lrsweep.training.data.formats import ALPACA_TEMPLATES, AXOLOTL_ROLES

NAME = "axolotl"
# Keys that decide which tokens rows have and which of them are learned. A file with one of them has its rows made by
# Axolotl itself.
ROW_KEYS = (
    "train_on_inputs",
    "min_sample_len",
    "chat_template_jinja",
    "chat_template_kwargs",
    "default_system_message",
    "added_tokens_overrides",
    "tokenizer_type",
    "tokenizer_config",
    "tokenizer_legacy",
    "tokenizer_use_fast",
    "tokenizer_use_mistral_common",
    "dataset_shard_num",
    "dataset_shard_idx",
    "dataset_exact_deduplication",
    "shuffle_before_merging_datasets",
)
# The value that is the same as none, where that is not false.
_NO_EFFECT = {
    "tokenizer_use_fast": True,
    "tokenizer_legacy": None,
    "tokenizer_type": "AutoTokenizer",
    "min_sample_len": 2,
}
DATA_KEYS = ("datasets", "chat_template", "eot_tokens", *ROW_KEYS)
# All keys that its rows depend on. Those after `DATA_KEYS` belong to other rows of the dialect's table, or to none.
_KEYS = (
    *DATA_KEYS,
    *("test_datasets", "sequence_len", "excess_length_strategy", "special_tokens", "seed"),
    *("base_model", "revision_of_model", "trust_remote_code"),
)
# Axolotl's default for `sequence_len`.
LENGTH = 512
_DEFAULTS = {"sequence_len": LENGTH, "seed": 42, "excess_length_strategy": "drop"}
_ENTRY = (
    "path",
    "type",
    "name",
    "split",
    "data_files",
    "ds_type",
    "field",
    "field_messages",
    "message_property_mappings",
    "message_field_role",
    "message_field_content",
    "chat_template",
    "roles_to_train",
    "train_on_eos",
    "roles",
    "field_thinking",
    "template_thinking_key",
)
# What Axolotl does without these fields.
_USUAL = (("drop_system_message", False), ("split_thinking", False), ("field_tools", "tools"))
_SHAREGPT = {"role": "from", "content": "value"}
_MESSAGES = {"role": "role", "content": "content"}


def read_data(tree: Tree) -> Tree:
    """Reads the data sets. Raises InputError for what Axolotl cannot read."""
    if not _made_by_axolotl(tree):
        return {**_one_set(tree, "datasets"), "data.tokenized_by": None, "data.trainer_config": {}}
    for name in ("datasets", "test_datasets"):
        sets = given(tree, name, [])
        if not isinstance(sets, list) or not all(isinstance(entry, Mapping) for entry in sets):
            raise InputError(f"{name}={brief(sets)}: not a list of data sets; correct it")
        for entry in sets:
            if not entry.get("path"):
                raise InputError(f"{name}={brief(entry)}: has no path; give it")
    if not tree.get("datasets"):
        raise InputError("datasets: missing; give the rows")
    return {
        "data.path": ", ".join(word("datasets.path", entry["path"]) for entry in tree["datasets"]),
        "data.name": None,
        "data.split": "train",
        "data.format": "tokens",
        "data.columns": {},
        "data.template": None,
        "data.tokenized_by": NAME,
        "data.trainer_config": {name: value for name in _KEYS if (value := _decisive(tree, name)) is not None},
    }


def _decisive(tree: Tree, name: str) -> Any:
    """A key's value for the rows; None if it is Axolotl's default. No row has a padding token."""
    value = tree.get(name)
    if name == "special_tokens" and isinstance(value, Mapping):
        value = {kind: text for kind, text in value.items() if kind != "pad_token" and text is not None} or None
    return None if value == _DEFAULTS.get(name) else value


def _made_by_axolotl(tree: Tree) -> bool:
    """Whether Axolotl itself has to read the rows, as trials would read others or cannot read them."""
    usual = {"tokenizer_config": tree.get("base_model"), **_NO_EFFECT}
    if any(tree.get(name) not in (None, {}, usual.get(name, False)) for name in ROW_KEYS):
        return True
    try:
        train = _one_set(tree, "datasets")
        held = _one_set(tree, "test_datasets") if tree.get("test_datasets") else train
    except InputError:
        return True
    return any(held[name] != train[name] for name in ("data.format", "data.columns", "data.template"))


def _one_set(tree: Tree, name: str) -> Tree:
    sets = tree.get(name)
    if not isinstance(sets, list) or len(sets) != 1 or not isinstance(sets[0], Mapping):
        raise InputError(f"{name}={brief(sets)}: trials read one data set; put the rows into one file or folder")
    entry: Mapping[str, Any] = sets[0]
    for field, value in entry.items():
        if field not in _ENTRY and value is not None and (field, value) not in _USUAL:
            raise InputError(f"{name}: {field}={brief(value)}: trials do not change or select rows; remove it")
    kind = entry.get("type")
    if kind == "chat_template" and tree.get("eot_tokens"):
        raise InputError(
            f"eot_tokens={brief(tree['eot_tokens'])}: trials learn the EOS token as a turn's end; remove it"
        )
    roles = given(entry, "roles_to_train", ["assistant"])
    if kind == "chat_template" and (
        roles not in (["assistant"], ["gpt"]) or given(entry, "train_on_eos", "turn") != "turn"
    ):
        raise InputError(
            f"roles_to_train={brief(roles)}: trials train on the assistant's turns and their end tokens; remove it"
        )
    files = entry.get("data_files")
    if isinstance(files, list) and len(files) == 1:
        files = files[0]
    if files is not None and entry.get("path") not in ("json", "csv", "parquet"):
        raise InputError(
            f"{name}: data_files={brief(files)}: trials read a data set whole; give the file itself as path"
        )
    if files is not None and not isinstance(files, str):
        raise InputError(f"{name}: data_files={brief(files)}: trials read one file or folder; give one")
    return {
        "data.path": files or word(f"{name}.path", entry.get("path", "")),
        "data.name": entry.get("name"),
        "data.split": entry.get("split") or _usual_split(name, str(files or entry.get("path"))),
        "data.template": None,
        **(_conversations(tree, entry) if kind == "chat_template" else _format(entry, kind)),
    }


def _usual_split(name: str, path: str) -> str:
    """The split that Axolotl takes if an entry names none: a single file has one only."""
    one_file = path.rpartition(".")[2] in ("json", "jsonl", "csv", "parquet", "txt", "arrow")
    return "test" if name == "test_datasets" and not one_file else "train"


def _conversations(tree: Tree, entry: Tree) -> Tree:
    """Rows of `type: chat_template`, in the tokenizer's template or one of Axolotl's."""
    template = word("chat_template", given(entry, "chat_template", given(tree, "chat_template", TOKENIZERS_OWN)))
    check_name(template)
    for role, names in mapping_of("roles", given(entry, "roles", {})).items():
        for name in names if isinstance(names, list) else [names]:
            if AXOLOTL_ROLES.get(name, name) != role:
                raise InputError(f"roles: {role}={brief(names)}: trials do not take {brief(name)} for the {role}")
    thought = given(entry, "field_thinking", "reasoning_content")
    if thought != given(entry, "template_thinking_key", "reasoning_content"):
        raise InputError(f"field_thinking={brief(thought)}: trials do not rename it; give template_thinking_key alike")
    properties = mapping_of("message_property_mappings", given(entry, "message_property_mappings", _MESSAGES))
    columns = {"messages": given(entry, "field_messages", "messages")}
    for name in ("role", "content"):  # its older spelling
        columns[name] = given(entry, f"message_field_{name}", properties.pop(name, name))
    if properties:
        raise InputError(f"message_property_mappings: {', '.join(properties)}: trials take further keys as they are")
    return {
        "data.format": "axolotl",
        "data.columns": {name: word(name, column) for name, column in columns.items() if column != name},
        "data.template": None if template == TOKENIZERS_OWN else template,
    }


def _format(entry: Tree, kind: Any) -> Tree:
    if kind == "completion":
        raise InputError("type=completion: Axolotl cuts a long text into several rows; use chat_template or alpaca")
    if kind in ALPACA_TEMPLATES:
        return {"data.format": "alpaca", "data.columns": {}, "data.template": kind}
    raise InputError(f"type={brief(kind)}: trials do not know that format; use chat_template, alpaca or completion")


def write_data(config: SweepConfig) -> Tree:
    """Writes the data set as an entry of `datasets`. Raises InputError for a format that Axolotl cannot express."""
    data = config.data
    if data.tokenized_by == NAME:
        return _write_made(config)
    entry: dict[str, Any] = {"path": data.path}
    if data.format in ("messages", "sharegpt"):
        column = "messages" if data.format == "messages" else "conversations"
        entry |= {"type": "chat_template", "field_messages": data.columns.get(column, column)}
        entry |= {"message_property_mappings": _MESSAGES if data.format == "messages" else _SHAREGPT}
    elif data.format == "axolotl":
        names = {name: data.columns.get(name, name) for name in ("messages", *_MESSAGES)}
        entry |= {"type": "chat_template", "field_messages": names.pop("messages"), "message_property_mappings": names}
        entry |= {"chat_template": data.template} if data.template else {}
    elif data.format == "text":
        entry |= {"type": "completion"} | ({"field": data.columns["text"]} if data.columns else {})
    elif data.path == "embedded":
        entry |= {"type": "completion"}
    elif data.format == "alpaca" and data.template in ALPACA_TEMPLATES and not data.columns:
        entry |= {"type": data.template}
    else:
        raise InputError(
            f"data.format={data.format}: Axolotl would add its own prompts to such rows; convert them to messages"
        )
    suffix = data.path.rsplit(".", 1)[-1].lower()
    if suffix in ("json", "jsonl", "csv", "parquet"):
        entry["ds_type"] = "json" if suffix == "jsonl" else suffix
    if data.name:
        entry["name"] = data.name
    if suffix not in ("json", "jsonl", "csv", "parquet") or data.split != "train":
        entry["split"] = data.split
    return {"datasets": [entry]}


def _write_made(config: SweepConfig) -> Tree:
    """Writes the keys of rows that Axolotl made. Raises InputError if the trials did not take them as it made them."""
    data = config.data
    if data.max_length != whole("sequence_len", given(data.trainer_config, "sequence_len", LENGTH)):
        raise InputError(
            f"data.max_length={data.max_length}: Axolotl made the rows with another; set sequence_len in its file "
            "and import that again"
        )
    made = data.trainer_config
    if (given(made, "excess_length_strategy", "drop") == "drop") != data.drop_long_rows:
        raise InputError(
            f"data.drop_long_rows={data.drop_long_rows}: Axolotl made the rows otherwise; set "
            "excess_length_strategy in its file and import that again"
        )
    if dict(made.get("special_tokens") or {}) != dict(config.model.special_tokens):
        raise InputError(
            "model.special_tokens: Axolotl made the rows with others; set special_tokens in its file and import "
            "that again"
        )
    return {name: value for name, value in data.trainer_config.items() if name in DATA_KEYS}


def read_evaluation_set(tree: Tree) -> Tree:
    """Reads the held-out rows: an evaluation set, or a share of the rows."""
    if tree.get("test_datasets"):
        if _made_by_axolotl(tree):
            return {}
        found = _one_set(tree, "test_datasets")
        return {"data.eval_path": found["data.path"], "data.eval_split": found["data.split"]}
    return held_out(tree, "val_set_size")


def write_evaluation_set(config: SweepConfig) -> Tree:
    """Writes how many rows are held out, or the evaluation set whose rows Axolotl made."""
    sets = config.data.trainer_config.get("test_datasets") if config.data.tokenized_by == NAME else None
    return {"test_datasets": sets} if sets else {"val_set_size": config.data.eval_fraction}


def rows_of(tree: Tree) -> int | None:
    """How many rows a run trains on where Axolotl makes them; None unless they are the lines of local files."""
    count = 0
    for entry in given(tree, "datasets", []):
        # A completion may become several rows, and other fields select some.
        if entry.get("type") == "completion" or not {"path", "type", "ds_type", "chat_template"}.issuperset(entry):
            return None
        rows = rows_in(word("path", entry["path"]))
        if rows is None:
            return None
        count += rows
    share = number("val_set_size", given(tree, "val_set_size", 0))
    held = 0 if tree.get("test_datasets") else int(share if share > 1 else math.ceil(count * share))
    return max(1, count - held) if count else None
