"""ms-swift's data keys: the rows, which ms-swift itself reads and tokenises, and those that are held out."""

import re
from collections.abc import Mapping

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects.data_keys import rows_are_ours, rows_in, share_only
from lrsweep.dialects.mapping import Tree
from lrsweep.dialects.rows import flag, given, number, whole, word
from lrsweep.errors import InputError
from lrsweep.training import modelscope
from lrsweep.training.data.reading import Source

NAME = "ms-swift"
# The length of rows in tokens where the file gives none: ms-swift has cut them to the model's.
_LONGEST = 10**9
# The formats whose rows ms-swift reads too, by their columns.
COLUMNS: Mapping[str, frozenset[str]] = {
    "messages": frozenset({"messages"}),
    "sharegpt": frozenset({"conversations"}),
    "alpaca": frozenset({"instruction", "output"}),
}
# Keys that decide which tokens are trained on, and nothing else. ms-swift itself makes the rows by them.
ROW_KEYS = (
    "use_hf",
    "dataset",
    "val_dataset",
    "cached_dataset",
    "cached_val_dataset",
    "columns",
    "disable_auto_column_mapping",
    "custom_dataset_info",
    "model_name",
    "model_author",
    "data_seed",
    "dataset_shuffle",
    "interleave_prob",
    "stopping_strategy",
    "strict",
    "template",
    "use_chat_template",
    "template_backend",
    "system",
    "agent_template",
    "loss_scale",
    "enable_thinking",
    "preserve_thinking",
    "add_non_thinking_prefix",
    "max_length",
    "truncation_strategy",
)
# Keys of the model that its tokenizer and template depend on.
_MODEL_KEYS = ("model", "model_type", "model_revision")
# Names of models and data sets that are not of text alone.
_NOT_TEXT = re.compile(
    r"(?i)vl\b|vl[-_]|ocr\b|ocr[-_]|tts\b|omni|audio|vision|video|image|llava|janus|ovis|internvl|minicpm-v"
)
# The weights of `loss_scale` that are 0 or 1. Others weigh some tokens more.
_SCALES = frozenset({"default", "last_round", "all", "ignore_empty_think", "ignore_think_prefix"})


def sets_of(tree: Tree, name: str) -> list[str]:
    """The data sets of a key: a list of them, or one."""
    value = given(tree, name, [])
    return [word(name, part) for part in (value if isinstance(value, list) else [value])]


def read_rows(tree: Tree) -> Tree:
    """The rows, which ms-swift itself reads and tokenises, as no other template writes exactly the same."""
    sets = [*sets_of(tree, "dataset"), *sets_of(tree, "cached_dataset")]
    sets_of(tree, "val_dataset")
    named = [word("model", given(tree, "model", "")), *sets]
    if other := next((name for name in named if _NOT_TEXT.search(name.rpartition("/")[2])), None):
        raise InputError(f"{other}: it is not of text alone, and trials learn from text; remove it")
    scale = word("loss_scale", given(tree, "loss_scale", "default"))
    if not _SCALES.issuperset(scale.split("+")):
        raise InputError(f"loss_scale={scale}: trials learn the answers, each token alike; set it to default")
    if given(tree, "truncation_strategy", "delete") == "split":
        raise InputError("truncation_strategy=split: it makes several rows of one; set it to delete or right")
    if tree.get("cached_val_dataset") and tree.get("split_dataset_ratio"):
        raise InputError("split_dataset_ratio: beside cached_val_dataset it holds out more rows; remove one of them")
    length = tree.get("max_length")
    if length is None and flag("packing", given(tree, "packing", False)):
        raise InputError("max_length: missing, so blocks have the model's own length; give it")
    return {
        "data.path": ", ".join(sets),
        "data.format": "tokens",
        "data.tokenized_by": NAME,
        "data.trainer_config": {name: tree[name] for name in (*_MODEL_KEYS, *ROW_KEYS) if tree.get(name) is not None},
        "data.max_length": _LONGEST if length is None else whole("max_length", length),
        "data.drop_long_rows": given(tree, "truncation_strategy", "delete") == "delete",
    }


def rows_of(tree: Tree) -> int | None:
    """How many rows a run trains on: those of its files, and as many as `DATASET#500` says."""
    if tree.get("cached_dataset") or tree.get("interleave_prob"):
        return None
    count = 0
    for name in sets_of(tree, "dataset"):
        path, _, sample = name.partition("#")
        if sample.isdecimal():
            count += int(sample)
            continue
        rows = rows_in(path)
        if rows is None:
            return None
        count += rows
    share = number("split_dataset_ratio", given(tree, "split_dataset_ratio", 0))
    held_out = max(int(count * share), 1) if share > 0 and not has_eval_set(tree) else 0
    return max(1, count - held_out) if count else None


def rows_differ(config: SweepConfig) -> str:
    """A comment for a sweep whose rows ms-swift did not make: it writes conversations by a template of its own."""
    if config.data.tokenized_by == NAME or config.data.path == "embedded":
        return rows_are_ours(config)
    learned = "whole conversations" if config.data.train_on_prompt else "their answers"
    return (
        f"# ms-swift writes conversations by its own template of the model. The trials learned {learned} as the "
        "tokenizer's\n# chat template writes them: where the two differ, so do the losses.\n"
    )


def write_rows(config: SweepConfig) -> Tree:
    """Writes the rows' keys. Raises InputError for rows that ms-swift cannot read."""
    data = config.data
    if data.tokenized_by == NAME:
        if data.max_length != whole("max_length", data.trainer_config.get("max_length", _LONGEST)):
            raise InputError(
                f"data.max_length={data.max_length}: ms-swift made the rows with another; set max_length in its file "
                "and import that again"
            )
        return {name: value for name, value in data.trainer_config.items() if name in (*ROW_KEYS, "model_type")}
    if data.format not in COLUMNS:
        raise InputError(
            f"data.format={data.format}: the export to ms-swift supports {', '.join(COLUMNS)}; convert the rows"
        )
    if data.columns:
        raise InputError(f"data.columns={dict(data.columns)}: ms-swift needs the format's own names; rename them")
    on_hub = Source("data.path", data.path, None, "train").local is None
    if on_hub and config.model.path.startswith(modelscope.PREFIX):
        raise InputError(
            f"data.path={data.path}: it is on Hugging Face's hub and the model on ModelScope, and ms-swift takes both "
            "from one; give a folder for one of them"
        )
    return {
        "dataset": [data.path],
        **({"use_hf": True} if on_hub else {}),
        "max_length": data.max_length,
        "truncation_strategy": "delete" if data.drop_long_rows else "right",
        **({"loss_scale": "all"} if data.train_on_prompt else {}),
        **({"val_dataset": [data.eval_path]} if data.eval_path else {}),
    }


def has_eval_set(tree: Tree) -> bool:
    """Whether a file names rows to evaluate on."""
    return bool(tree.get("val_dataset") or tree.get("cached_val_dataset"))


def read_held_out(tree: Tree) -> Tree:
    """The share of the rows to hold out. Trials hold out other rows than ms-swift, but as many."""
    share = number("split_dataset_ratio", given(tree, "split_dataset_ratio", 0))
    return {"data.eval_fraction": share} if share > 0 and not has_eval_set(tree) else {}


def write_held_out(config: SweepConfig) -> Tree:
    """Writes the share of the rows to hold out. Raises InputError for a number of rows."""
    data = config.data
    if data.eval_path or has_eval_set(data.trainer_config):
        return {}
    return {"split_dataset_ratio": share_only(data.eval_fraction, "ms-swift")}
