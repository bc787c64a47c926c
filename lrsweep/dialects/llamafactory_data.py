"""LLaMA-Factory's data keys: data sets, template and packing."""

import json
from pathlib import Path
from typing import Any

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects.data_keys import held_out, rows_are_ours
from lrsweep.dialects.mapping import Tree
from lrsweep.dialects.rows import flag, names, whole, word
from lrsweep.errors import InputError
from lrsweep.training.data.chat_templates import check_name


def read_data(tree: Tree) -> Tree:
    """Reads the data sets, named in a dataset_info.json. Raises InputError if none is named or it is not local.

    Tokens in `tokenized_path` replace the data set. Where there are none, LLaMA-Factory stores the data set's there.
    """
    if not tree.get("dataset"):
        raise InputError("dataset: missing; give the data set's name")
    cached = tree.get("tokenized_path")
    if cached is not None and Path(word("tokenized_path", cached)).exists():
        raise InputError(f"tokenized_path={cached}: what is there replaces the data set; remove it")
    place = tree.get("dataset_dir") or "data"
    if not isinstance(place, str) or place == "ONLINE":
        raise InputError(f"dataset_dir={place}: trials read a dataset_info.json; give its folder")
    rows = tree.get("max_samples")
    return {
        "data.path": place,
        "data.format": "llamafactory",
        "data.name": ",".join(names("dataset", tree["dataset"])),
        "data.max_rows_per_set": None if rows is None else whole("max_samples", rows),
    }


def write_data(config: SweepConfig) -> Tree:
    """Writes the data set's name; `data_not_here` its entry in dataset_info.json. Raises InputError for text."""
    data = config.data
    if data.format == "llamafactory":
        rows = {} if data.max_rows_per_set is None else {"max_samples": data.max_rows_per_set}
        return {"dataset": data.name, "dataset_dir": data.path, **rows}
    if data.format == "text":
        raise InputError(
            "data.format=text: LLaMA-Factory's sft stage trains on answers to prompts; export to transformers or trl"
        )
    if data.format == "tokens":
        raise InputError("data.format=tokens: LLaMA-Factory reads rows of text; export to the trainer that made them")
    if data.format == "axolotl":
        raise InputError("data.format=axolotl: LLaMA-Factory writes such conversations otherwise; export to axolotl")
    if data.path == "embedded":
        return {"dataset": "embedded"}
    return {"dataset": Path(data.path).stem, "dataset_dir": str(Path(data.path).parent)}


def read_template(tree: Tree) -> Tree:
    """Reads the template. Whether the tokenizer has its tokens is checked when it is loaded."""
    name = tree.get("template")
    if name is not None:
        check_name(word("template", name))
    return {"data.template": name}


def read_packing(tree: Tree) -> Tree:
    """Reads packing. Raises InputError for packed rows that attend to one another."""
    apart = flag("neat_packing", tree.get("neat_packing") or False)
    if flag("packing", tree.get("packing") or False) and not apart:
        raise InputError(
            "packing=True: packed rows attend to one another there, but not in trials; set neat_packing: true"
        )
    return {"data.packing": apart}


def read_evaluation_set(tree: Tree) -> Tree:
    """Reads the held-out rows: evaluation sets, or a share of the rows."""
    if tree.get("eval_dataset"):
        return {"data.eval_name": ",".join(names("eval_dataset", tree["eval_dataset"]))}
    return held_out(tree, "val_size")


def write_evaluation_set(config: SweepConfig) -> Tree:
    """Writes the evaluation sets, or the share."""
    data = config.data
    return {"eval_dataset": data.eval_name} if data.eval_name else {"val_size": data.eval_fraction}


def data_not_here(config: SweepConfig) -> str:
    """Returns a comment with the entry that dataset_info.json needs; empty if there is one already."""
    data = config.data
    if data.format == "llamafactory":
        return ""
    if data.path == "embedded":
        return rows_are_ours(config)
    columns = {
        "alpaca": {
            ours: data.columns.get(theirs, theirs)
            for ours, theirs in (("prompt", "instruction"), ("query", "input"), ("response", "output"))
        },
        "sharegpt": {"messages": data.columns.get("conversations", "conversations")},
        "messages": {"messages": data.columns.get("messages", "messages")},
        "prompt_completion": {
            ours: data.columns.get(theirs, theirs)
            for ours, theirs in (("prompt", "prompt"), ("response", "completion"))
        },
    }[data.format]
    entry: dict[str, Any] = {"file_name": Path(data.path).name, "columns": columns}
    if data.format in ("sharegpt", "messages"):
        entry["formatting"] = "sharegpt"
    if data.format == "messages":
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
        entry["tags"] = tags | {"system_tag": "system"}
    comment = f'# Add to the dataset_info.json in the data\'s folder: "{Path(data.path).stem}": {json.dumps(entry)}\n'
    if data.format == "prompt_completion":
        comment += "# Trials added an end-of-text token after each completion; the template `empty` does not.\n"
    return comment
