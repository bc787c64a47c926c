"""YAML that every reader takes the same way: PyYAML (YAML 1.1), YAML 1.2 and OmegaConf differ in what is a number.

1e-05 is a string to PyYAML, `yes` a truth, 1:30 is 90, and 0o7 is 7 to others: floats get a dot, such words get quotes.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

# What one reader or another takes for something else than text.
_NOT_PLAINLY_TEXT = re.compile(
    r"""~|null|true|false|yes|no|on|off|y|n|\?\?\?
    |[-+]?(\.\d[\d_]*|\d[\d_]*(\.[\d_]*)?)(e[-+]?\d+)?|[-+]?\.inf|[-+]?inf|\.nan|nan
    |[-+]?0[bxo]?[\da-f_]+|[-+]?\d[\d_]*(:\d[\d_]*)+(\.[\d_]*)?
    |\d{4}-\d\d?-\d\d?([Tt\s].*)?|[-+]?[\d_.,]+|=|<<""",
    re.IGNORECASE | re.VERBOSE,
)
# libyaml's, where PyYAML was built with it: the same language, ten times as fast.
_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_SafeDumper):  # type: ignore[misc]
    """Numbers and words that read the same everywhere; lists on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


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


_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(tuple, _represent_list)


def to_yaml(tree: Mapping[str, Any]) -> str:
    """The tree as YAML, keys in their order."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def scalar(value: Any) -> str:
    """One value as it stands after `key: `, on one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=100_000)
    return text.removesuffix("...\n").strip()
