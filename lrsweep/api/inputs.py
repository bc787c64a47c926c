"""A model and data given as Python objects: files for the trials, named by their content, and the config's keys."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrsweep.api.overrides import override
from lrsweep.config.config_files import CONF
from lrsweep.config.trial_schema import DataFormat
from lrsweep.errors import InputError
from lrsweep.files.atomic import disk_faults, write_text
from lrsweep.files.paths import OUTPUTS

_INPUTS = OUTPUTS / ".inputs"
# The columns by which a row's format is known.
_COLUMNS: dict[DataFormat, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}


@dataclass(frozen=True)
class Input:
    """A part of a sweep's input.

    Attributes:
        overrides: The config's keys for it.
        files: The files that the trials will read, each with what writes it.
    """

    overrides: tuple[str, ...] = ()
    files: tuple[tuple[Path, Callable[[Path], None]], ...] = ()

    def write(self) -> list[Path]:
        """Writes the files that are not there yet, and returns them. Raises StorageError if the disk fails."""
        written = []
        for path, writer in self.files:
            if not path.exists():
                with disk_faults(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    writer(path)
                written.append(path)
        return written


def model_input(model: Any, tokenizer: Any) -> Input:
    """The model: None, a folder, a hub id, an option of the group `model`, or a loaded model with its tokenizer.

    Raises:
        InputError: The model cannot be used as it is.
    """
    if model is None or isinstance(model, str | Path):
        if tokenizer is not None:
            raise InputError("tokenizer: goes with a loaded model; a model's folder has its own")
        return Input() if model is None else Input(_named_model(str(model)))
    if not hasattr(model, "save_pretrained") or not hasattr(model, "state_dict"):
        raise InputError(f"model: {type(model).__name__}; give a loaded PreTrainedModel, a folder, or a hub id")
    if hasattr(model, "peft_config"):
        raise InputError(
            "model: has adapters, but a sweep starts from a whole model; call merge_and_unload(), or give the base"
        )
    if getattr(model, "is_quantized", False):
        raise InputError("model: is quantized; give its folder or hub id, and model.quantization in the overrides")
    if tokenizer is None:
        raise InputError("tokenizer: missing; a loaded model needs its tokenizer, as tokenizer=...")
    path = _INPUTS / f"model-{_model_digest(model, tokenizer)}"

    def save(target: Path) -> None:
        new = target.with_name(f"{target.name}.{os.getpid()}")
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        try:
            new.rename(target)
        except OSError:
            # Another process has just written the same.
            shutil.rmtree(new)
            if not target.is_dir():
                raise

    return Input(("model=local", override("model.path", path)), ((path, save),))


def data_input(data: Any, eval_data: Any) -> Input:
    """The data, and the eval rows: each None, a file, a folder, a hub id, or rows.

    Raises:
        InputError: The rows cannot be written, or their format is not known.
    """
    if data is None:
        if eval_data is not None:
            raise InputError("eval_data: goes with data; give the training rows too")
        return Input()
    overrides, files = ["data=local"], []
    for key, given in (("data.path", data), ("data.eval_path", eval_data)):
        if given is None:
            continue
        if isinstance(given, str | Path):
            overrides.append(override(key, str(given)))
            continue
        rows = _rows(key, given)
        if key == "data.path":
            overrides += _format(rows[0])
        text = "".join(rows)
        path = _INPUTS / f"rows-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
        overrides.append(override(key, path))
        files.append((path, lambda target, text=text: write_text(target, text)))
    return Input(tuple(overrides), tuple(files))


def _named_model(model: str) -> tuple[str, ...]:
    if any((folder / "model" / f"{model}.yaml").is_file() for folder in (CONF, Path("conf"))):
        return (override("model", model),)
    return "model=local", override("model.path", model)


def _model_digest(model: Any, tokenizer: Any) -> str:
    """The SHA-256 of a model's weights and config and of its tokenizer, the first 16 hex digits."""
    import torch

    digest = hashlib.sha256(model.config.to_json_string().encode())
    digest.update(f"{type(tokenizer).__name__} {sorted(tokenizer.get_vocab().items())}".encode())
    digest.update(f"{tokenizer.special_tokens_map} {getattr(tokenizer, 'chat_template', None)}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _rows(key: str, given: Any) -> list[str]:
    """The rows as lines of JSON. Raises InputError."""
    if not isinstance(given, Iterable) or isinstance(given, Mapping):
        raise InputError(f"{key}: {type(given).__name__}; give a Dataset, a list of rows, or a path")
    lines = []
    for number, row in enumerate(given):
        if not isinstance(row, Mapping):
            raise InputError(f"{key}: row {number} is {type(row).__name__}; a row is a mapping of columns")
        try:
            lines.append(json.dumps(dict(row), ensure_ascii=False) + "\n")
        except (TypeError, ValueError) as fault:
            raise InputError(f"{key}: row {number} cannot be written as JSON: {fault}") from None
    if not lines:
        raise InputError(f"{key}: no rows")
    return lines


def _format(line: str) -> list[str]:
    """The override of `data.format` that fits the row; empty if none does, so that the user has to give it."""
    row = json.loads(line)
    return [override("data.format", name) for name, columns in _COLUMNS.items() if all(c in row for c in columns)][:1]
