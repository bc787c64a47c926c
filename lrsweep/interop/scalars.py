"""YAML that every reader takes the same way: PyYAML (YAML 1.1), YAML 1.2 and OmegaConf differ in what is a number.

1e-05 is a string to PyYAML, `yes` a truth, 1:30 is 90, and 0o7 is 7 to others: floats get a dot, such words get quotes.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from lrsweep import yaml_limits
from lrsweep.errors import InputError

# What one reader or another takes for something else than text.
_NOT_PLAINLY_TEXT = re.compile(
    r"""~|null|true|false|yes|no|on|off|y|n|\?\?\?
    |[-+]?(\.\d[\d_]*|\d[\d_]*(\.[\d_]*)?)(e[-+]?\d+)?|[-+]?\.inf|[-+]?inf|\.nan|nan
    |[-+]?0[bxo]?[\da-f_]+|[-+]?\d[\d_]*(:\d[\d_]*)+(\.[\d_]*)?
    |\d{4}-\d\d?-\d\d?([Tt\s].*)?|[-+]?[\d_.,]+|=|<<""",
    re.IGNORECASE | re.VERBOSE,
)
# YAML 1.1's floats, and those it forgot: an exponent without a dot.
_FLOAT = re.compile(
    r"""^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*([eE][-+]?\d+)?)$
    |^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$""",
    re.VERBOSE,
)


# libyaml's, where PyYAML was built with it: the same language, ten times as fast.
_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Dumper(_SafeDumper):  # type: ignore[misc]
    """Numbers and words that read the same everywhere; lists on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Loader(_SafeLoader):  # type: ignore[misc]
    """As the tools read their own files: 1e-4 is a number, a date is text. A key given twice is refused."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    if value != value or value in (float("inf"), float("-inf")):
        return dumper.represent_float(value)
    text = repr(value)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text.replace("e", ".0e") if "." not in text else text)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "'" if _NOT_PLAINLY_TEXT.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _represent_list(dumper: yaml.SafeDumper, value: Any) -> yaml.Node:
    nested = any(isinstance(part, Mapping) for part in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=not nested)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> Any:
    seen = set()
    for name, _ in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key is a text", name.start_mark)
        if name.value in seen and name.value != "<<":
            raise yaml.constructor.ConstructorError(None, None, f"{name.value} is given twice", name.start_mark)
        seen.add(name.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(tuple, _represent_list)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if not tag.endswith((":float", ":timestamp"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def dump(tree: Mapping[str, Any]) -> str:
    """The tree as YAML, keys in their order."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def scalar(value: Any) -> str:
    """One value as it stands after `key: `, on one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=100_000)
    return text.removesuffix("...\n").strip()


def load(text: str, where: str) -> dict[str, Any]:
    """The mapping that a config file holds. Raises InputError naming file and line."""
    yaml_limits.check(text, where)
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as fault:
        mark, problem = (
            getattr(fault, "problem_mark", None),
            getattr(fault, "problem", None) or str(fault).splitlines()[0],
        )
        at = f"{where}:{mark.line + 1}" if mark else where
        raise InputError(f"{at}: not valid YAML: {problem}; correct that line") from None
    if not isinstance(tree, dict) or not all(isinstance(name, str) for name in tree):
        raise InputError(f"{where}: a config is a mapping of keys to values; give such a file")
    return tree
