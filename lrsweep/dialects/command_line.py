"""A trainer's command line as the config file that would say the same."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrsweep.dialects.file_editor import read
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.errors import InputError

_OPTION = re.compile(r"--?([A-Za-z_][\w.-]*)(?:=(.*))?", re.DOTALL)
_FILE = re.compile(r".+\.(ya?ml|json)")


def parsed(arguments: Sequence[str]) -> tuple[dict[str, Any], str, str]:
    """Parses a command line such as `trl sft --model_name_or_path m --learning_rate 1e-4`.

    Options are `--key value`, `--key=value`, `--key value value` or `--flag`; LLaMA-Factory's `key=value` too. A config
    file among the arguments is read first, and options come over it.

    Args:
        arguments: The arguments of the command line.

    Returns:
        The config file's content, the command with `--config {config}` or `{config}` in place of the options, and a
        name for the run.

    Raises:
        InputError: A word cannot be read, or the config file cannot.
    """
    start = next(
        (at for at, word in enumerate(arguments) if _OPTION.fullmatch(word) or _is_setting(word)), len(arguments)
    )
    program, options = list(arguments[:start]), arguments[start:]
    tree: dict[str, Any] = {}
    if program and _FILE.fullmatch(program[-1]):
        tree |= read(Path(program.pop()))[1]
        how = "{config}"
    else:
        how = "--config {config}"
    if not program:
        raise InputError("the command line starts with an option; write it whole, as in -- trl sft --max_steps 100")
    values = _options(options)
    if isinstance(file := values.pop("config", None), str):
        tree |= read(Path(file))[1]
    name = "_".join(Path(word).stem for word in program if "=" not in word)
    return tree | values, f"{' '.join(program)} {how}", f"{name}.yaml"


def _options(arguments: Sequence[str]) -> dict[str, Any]:
    found: dict[str, list[Any]] = {}
    name = ""
    for word in arguments:
        option = _OPTION.fullmatch(word)
        if option and not _is_number(word):
            name = option[1].replace("-", "_")
            found[name] = [] if option[2] is None else [_value(option[2])]
        elif _is_setting(word) and not name:
            key, _, text = word.partition("=")
            found[key] = [_value(text)]
        elif name:
            found[name].append(_value(word))
        else:
            raise InputError(f"{word!r}: neither an option nor the value of one; write --key value")
    return {key: True if not values else values[0] if len(values) == 1 else values for key, values in found.items()}


def _is_setting(word: str) -> bool:
    """Whether a word is LLaMA-Factory's key=value; an environment variable's name has no lower-case letters."""
    return re.fullmatch(r"[a-z][a-z0-9_]*=.*", word, re.DOTALL) is not None


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-[\d.]+(e-?\d+)?", word) is not None


def _value(text: str) -> Any:
    """The value as YAML reads it; a string where YAML cannot."""
    try:
        return load_yaml(f"value: {text}", "")["value"]
    except InputError:
        return text
