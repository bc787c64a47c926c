"""Readers of YAML and JSON that read config files as the trainers do, and refuse duplicate keys."""

import json
import re
from typing import Any

import yaml

from lrsweep.config import yaml_safety
from lrsweep.errors import InputError

# YAML 1.1's floats, and floats with an exponent but without a dot, which YAML 1.1 reads as strings.
_FLOAT = re.compile(
    r"""^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*([eE][-+]?\d+)?)$
    |^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$""",
    re.VERBOSE,
)


# libyaml's loader, if PyYAML was built with it, is ten times as fast.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc]
    """A safe loader for which 1e-4 is a number and a date is a string; it refuses duplicate keys."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> Any:
    seen = set()
    for name, _ in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a string", name.start_mark)
        if name.value in seen and name.value != "<<":
            raise yaml.constructor.ConstructorError(None, None, f"{name.value} is given twice", name.start_mark)
        seen.add(name.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if not tag.endswith((":float", ":timestamp"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def load_yaml(text: str, where: str) -> dict[str, Any]:
    """Parses a config file.

    Args:
        text: The file's text.
        where: The file's name, for messages.

    Raises:
        InputError: The text is not a YAML mapping with string keys; the message names the file and, if known, the line.
    """
    yaml_safety.check(text, where)
    _refuse_tabs(text, where)
    try:
        tree = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml_safety.YAML_FAULTS as fault:
        mark = getattr(fault, "problem_mark", None)
        problem = getattr(fault, "problem", None) or str(fault).split("\n", 1)[0]
        if not isinstance(fault, yaml.YAMLError):
            problem = "a number or a date that is none"
        at = f"{where}:{mark.line + 1}" if mark else where
        raise InputError(f"{at}: not valid YAML: {problem}; correct that line") from None
    return _mapping(tree, where)


def _refuse_tabs(text: str, where: str) -> None:
    """Refuses tabs between tokens, which libyaml reads and PyYAML, with which trainers read, does not."""
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(r"\s*(- +)*[\w.]+:\t+[^\s#]|\t+[^\s#]", line):
            raise InputError(f"{where}:{number}: a tab, which YAML does not take there; write spaces")


def load_json(text: str, where: str) -> dict[str, Any]:
    """Parses a config file in JSON.

    Args:
        text: The file's text.
        where: The file's name, for messages.

    Raises:
        InputError: The text is not a JSON object, or gives a key twice.
    """

    def pairs_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"{where}: {twice} is given twice; take one out")
        return dict(pairs)

    try:
        tree = json.loads(text, object_pairs_hook=pairs_once)
    except json.JSONDecodeError as fault:
        raise InputError(f"{where}:{fault.lineno}: not valid JSON: {fault.msg.lower()}; correct that line") from None
    except RecursionError:
        raise InputError(f"{where}: not valid JSON: it is nested too deeply; correct it") from None
    except ValueError:  # Python reads no longer ones
        raise InputError(f"{where}: not valid JSON: a number of thousands of digits; correct it") from None
    # JSON is YAML, and its values are written as that.
    yaml_safety.check(text, where)
    return _mapping(tree, where)


def _mapping(tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, dict) or not all(isinstance(name, str) for name in tree):
        raise InputError(f"{where}: a config is a mapping of keys to values; give such a file")
    return tree
