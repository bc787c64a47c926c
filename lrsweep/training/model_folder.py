"""Quick checks of a model's folder, before any slow library is imported."""

import json
import os
from pathlib import Path
from typing import Any

from lrsweep.config.trial_schema import ModelConfig
from lrsweep.embedded import smollm2
from lrsweep.errors import InputError
from lrsweep.files.paths import expanded
from lrsweep.training import modelscope

# safetensors' own limit for the header, in bytes.
_LONGEST_HEADER = 100_000_000
# The deepest published models have some hundred layers. A skeleton of more takes minutes to build.
MOST_LAYERS = 2000
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_local_experts", "num_experts")
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")


def check_path(model: ModelConfig) -> None:
    """Checks that a local `model.path` is a folder with a whole safetensors model and its tokenizer.

    A hub id passes.

    Raises:
        InputError: It is not; the message says what is wrong and what to do.
    """
    if model.path == smollm2.NAME:
        smollm2.check()
        return
    if model.path.startswith(modelscope.PREFIX):
        modelscope.check(model)
        return
    path = expanded(model.path)
    if not os.path.exists(path):  # False for a name that is too long
        if model.path.startswith((".", "/", "~")) or model.path.count("/") > 1:
            raise InputError(f"model.path={model.path!r}: no such folder")
        return
    if (path / "adapter_config.json").exists():
        raise InputError(
            f"model.path={model.path!r}: this is an adapter, but a sweep starts from a whole model; merge it into its "
            "base, or use the base"
        )
    if not (path / "config.json").is_file():
        raise InputError(f"model.path={model.path!r}: not a model folder: it has no config.json")
    tree = _read_json(model, path / "config.json")
    if not isinstance(tree, dict):
        raise InputError(f"model.path={model.path!r}: config.json is not a mapping; download the model again")
    _check_layers(model, tree)
    _check_entries(model, path)
    if not any(path.glob("*.safetensors")):
        raise InputError(f"model.path={model.path!r}: no .safetensors file there; other weight formats are not loaded")
    # Without one, transformers silently makes a tokenizer without a vocabulary.
    if not any(found for name in _TOKENIZERS for found in path.glob(name)):
        raise InputError(
            f"model.path={model.path!r}: no tokenizer there (looked for {', '.join(_TOKENIZERS)}); save the model's "
            "tokenizer there too"
        )
    if (path / "tokenizer.json").exists():
        _read_json(model, path / "tokenizer.json")
    for file in _weights(model, path):
        _check_whole(model, file)


def own_code(model: ModelConfig) -> str | None:
    """A line for the terminal about code in a local model's folder that is not run; None if there is none."""
    path = expanded(model.path)
    if model.trust_remote_code or not (path / "config.json").is_file():
        return None
    tree = _read_json(model, path / "config.json")
    if not isinstance(tree, dict) or not tree.get("auto_map"):
        return None
    return (
        f"the model's own code (auto_map in config.json) is not run, but transformers' {tree.get('model_type')}; "
        "model.trust_remote_code=true runs it"
    )


def _check_layers(model: ModelConfig, tree: dict[str, Any]) -> None:
    text = tree.get("text_config")
    for place in (tree, text if isinstance(text, dict) else {}):
        for key in _LAYERS:
            count = place.get(key)
            if isinstance(count, int) and count > MOST_LAYERS:
                shown = f"{count:.0e}" if count < 10**300 else "a number of hundreds of digits"
                raise InputError(
                    f"model.path={model.path!r}: config.json has {key}={shown}, more than {MOST_LAYERS}, as no model "
                    "has; download it again"
                )


def _check_entries(model: ModelConfig, path: Path) -> None:
    """Refuses pipes, sockets and devices, which would block who reads them, and folders where files belong."""
    for entry in sorted(path.iterdir()):
        named_as_file = entry.suffix in (".json", ".safetensors", ".jinja", ".model", ".tiktoken")
        if (os.path.exists(entry) and not entry.is_file() and not entry.is_dir()) or (entry.is_dir() and named_as_file):
            raise InputError(f"model.path={model.path!r}: {entry.name} is not a file; download the model again")


def _read_json(model: ModelConfig, file: Path) -> Any:
    """The file's contents. Raises InputError if it is not JSON."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as fault:
        reason = fault.msg if isinstance(fault, json.JSONDecodeError) else str(fault)
        raise InputError(f"model.path={model.path!r}: {file.name} is not JSON: {reason}; download it again") from None


def _weights(model: ModelConfig, path: Path) -> list[Path]:
    """The files that transformers loads: one, or those that the index names."""
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.exists() or not index.is_file():
        return [whole] if whole.exists() else []
    tree = _read_json(model, index)
    places = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"model.path={model.path!r}: {index.name} names no files; download it again")
    files = [path / name for name in sorted(set(places.values()))]
    for file in files:
        if not file.is_file():
            raise InputError(f"model.path={model.path!r}: {file.name} is missing; download it again")
    return files


def _check_whole(model: ModelConfig, file: Path) -> None:
    """Checks that a safetensors file ends where its header says that the last tensor ends. Raises InputError.

    A file is 8 bytes of header length, a JSON header and the data: https://huggingface.co/docs/safetensors/index#format
    """
    with open(file, "rb") as opened:
        start = opened.read(8)
        if start == b"version ":
            raise InputError(f"model.path={model.path!r}: {file.name} is a Git LFS pointer; run git lfs pull there")
        length = int.from_bytes(start, "little")
        header = opened.read(length) if length <= _LONGEST_HEADER else b""
    try:
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        end = max([int(entry["data_offsets"][1]) for entry in tensors], default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise InputError(
            f"model.path={model.path!r}: {file.name} is not a safetensors file; download it again"
        ) from None
    if file.stat().st_size != 8 + length + end:
        raise InputError(
            f"model.path={model.path!r}: {file.name} has {file.stat().st_size} bytes and should have "
            f"{8 + length + end}; download it again"
        )
