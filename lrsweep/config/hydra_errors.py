"""Hydra's errors as one line that names the key, the rule and the choices."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException

from lrsweep.config.schema import did_you_mean
from lrsweep.config.synonyms import meant


def first_line(fault: Exception) -> str:
    """An error's first line; for YAML, the line number and the problem."""
    mark = getattr(fault, "problem_mark", None)
    if mark is not None:
        return f"line {mark.line + 1}: {getattr(fault, 'problem', '')}"
    return str(fault).strip().splitlines()[0]


def one_line(fault: Exception, conf: Path, sweeps: Sequence[str], overrides: Sequence[str] = ()) -> str:
    """An error of Hydra, OmegaConf or PyYAML as one line.

    Args:
        fault: The error.
        conf: The folder of config groups.
        sweeps: The names that +sweep= can take.
        overrides: The command line's overrides.

    Returns:
        The key, the rule and, where there are some, the choices.
    """
    text = str(fault)
    if isinstance(fault, MissingConfigException) and fault.missing_cfg_file:
        return _no_such_option(fault, sweeps)
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match[1]
        groups = [path.name for path in conf.iterdir() if path.is_dir() and "." not in key]
        if key in groups:
            return f"{key}: is a group; choose one of its options, as {key}=NAME, or set one of its keys"
        near = [] if meant(key) else difflib.get_close_matches(key, groups, n=1)
        return f"{key}: no such key" + (f"; did you mean {near[0]}?" if near else did_you_mean(key))
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        key, _, values = match[1].partition("=")
        return (
            f"{match[1]}: several values make an axis; write space.{key.lstrip('+').removeprefix('space.')}=[{values}]"
        )
    if match := re.match(r"Error merging override \+*(([^=]+)=.*)", text):
        return f"{match[1]}: {match[2]} has keys of its own; set one of them, as {match[2]}.KEY=VALUE"
    if match := re.search(r"invalid literal for int\(\) with base 10: '([^']*)'", text):
        for override in overrides:
            key, inside, _ = override.lstrip("+").partition(f".{match[1]}=")
            if inside:
                return f"{override.lstrip('+')}: {key} is a list; give a whole new value, as {key}=[...]"
    if isinstance(fault, OverrideParseException):
        return f"{fault.override}: not an override; write key=value, and quote values that have spaces or brackets"
    if isinstance(fault, yaml.YAMLError):
        where = getattr(getattr(fault, "problem_mark", None), "name", "config")
        return f"{where}: not valid YAML: {first_line(fault)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), "")
    key = key or _culprit(overrides, conf)[:100]
    return f"{key}: {lines[0]}" if key else lines[0]


def _no_such_option(fault: MissingConfigException, sweeps: Sequence[str]) -> str:
    file = str(fault.missing_cfg_file)
    group, _, option = file.partition("/") if ".." in file else file.rpartition("/")
    choices = list(sweeps) if group == "sweep" else sorted(fault.options or [])
    near = difflib.get_close_matches(option, choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{group}={option}: no such option{hint} (choices: {', '.join(choices)})"


def _culprit(overrides: Sequence[str], conf: Path) -> str:
    """The override that cannot be parsed or is not an option of its group; Hydra's error does not always name it."""
    parser = OverridesParser.create()
    for text in overrides:
        try:
            parsed = parser.parse_override(text)
        except (HydraException, ValueError, RecursionError):
            return text
        is_group = (conf / parsed.key_or_group).is_dir()
        if is_group and not parsed.is_delete() and not isinstance(parsed.value(), str | list):
            return text
    return ""
