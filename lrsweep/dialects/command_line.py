"""A trainer's command line as the config file that would say the same."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrsweep.dialects.file_editor import read
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.errors import InputError

_OPTION = re.compile(r"--?([A-Za-z_][\w.-]*)(?:=(.*))?", re.DOTALL)
_FILE = re.compile(r".+\.(ya?ml|json)")
_VARIABLE = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
# Programs that start another one, and take options of their own before it.
_LAUNCHERS = re.compile(
    r"accelerate|torchrun|deepspeed|srun|mpirun|mpiexec|ray|uv|uvx|poetry|conda|pipx|nice|nohup|numactl|time|sudo"
    r"|(ba|z|da)?sh"
)
_PYTHON = re.compile(r"python[\d.]*|pypy[\d.]*")


def parsed(
    arguments: Sequence[str], config_argument: str = "{config}", command: str | None = None
) -> tuple[dict[str, Any], str, str]:
    """Parses a command line such as `trl sft --model_name_or_path m --learning_rate 1e-4`.

    Options are `--key value`, `--key=value`, `--key value value` or `--flag`; LLaMA-Factory's `key=value` too. A config
    file among the arguments is read first, and options come over it.

    Args:
        arguments: The arguments of the command line.
        config_argument: How the trainer's command takes its config file, such as `--config {config}`.
        command: The command that the user gives for the trials; None takes the line's own.

    Returns:
        The config file's content, the command with the config file in place of the options, and a name for the run.

    Raises:
        InputError: A word cannot be read, the config file cannot, or only `command` can tell the program.
    """
    before, rest = _environment(arguments)
    program, options = _program(rest, command is not None)
    tree: dict[str, Any] = {}
    if program and _FILE.fullmatch(program[-1]):
        tree |= read(Path(program.pop()))[1]
        config_argument = "{config}"
    if not program:
        raise InputError("the command line starts with an option; write it whole, as in -- trl sft --max_steps 100")
    values = _options(options)
    if isinstance(file := values.pop("config", None), str):
        tree |= read(Path(file))[1]
        config_argument = "--config {config}"
    name = "_".join(Path(word).stem for word in program if "=" not in word)
    line = command if command is not None else f"{shlex.join([*before, *program])} {config_argument}"
    return tree | values, line, f"{name}.yaml"


def _environment(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The line's variables, as `env` takes them, and the rest of the line."""
    line = list(arguments)
    given = line[:1] == ["env"]
    start = int(given)
    while start < len(line) and _VARIABLE.fullmatch(line[start]):
        start += 1
    variables = line[int(given) : start]
    return ["env", *variables] if variables else [], line[start:]


def _program(line: list[str], has_command: bool) -> tuple[list[str], list[str]]:
    """The program with its subcommands, and its options.

    With `has_command`, the program may also be what a launcher starts: a script, or a module after `-m`.
    """
    start = next((at for at, word in enumerate(line) if _OPTION.fullmatch(word) or _is_setting(word)), len(line))
    program, options = line[:start], line[start:]
    if not program or not _is_launched(program, options):
        return program, options
    if not has_command:
        raise InputError(
            f"{' '.join(program)}: its own options cannot be told from the trainer's; give the trials' command, as in "
            "--command 'accelerate launch train.py --config {config}'"
        )
    script = next(
        (
            at
            for at, word in enumerate(line)
            if word.endswith(".py") or (at and line[at - 1] in ("-m", "--module") and not word.startswith("-"))
        ),
        None,
    )
    if script is None:
        raise InputError(f"{' '.join(program)}: no script and no -m MODULE in the line; leave the launcher out of it")
    return _program(line[script:], has_command)


def _is_launched(program: Sequence[str], options: Sequence[str]) -> bool:
    """Whether the program's options come before another program's."""
    name = Path(program[0]).name
    if _PYTHON.fullmatch(name):
        return len(program) == 1
    script = len(program) == 1 and any(re.fullmatch(r"[^-].*\.py", word) for word in options)
    return _LAUNCHERS.fullmatch(name) is not None or script


def _options(arguments: Sequence[str]) -> dict[str, Any]:
    found: dict[str, list[Any]] = {}
    name = ""
    for word in arguments:
        option = _OPTION.fullmatch(word)
        if option:
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


def _value(text: str) -> Any:
    """A number, a truth value, a list or a mapping as YAML reads it; all else is the text itself."""
    if "#" in text or "\n" in text:
        return text
    try:
        found = load_yaml(f"value: {text}", "")["value"]
    except InputError:
        return text
    return text if isinstance(found, str) else found
