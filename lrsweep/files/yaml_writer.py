"""Writes YAML that all readers parse alike: PyYAML (YAML 1.1), YAML 1.2 and OmegaConf disagree about plain scalars.

PyYAML reads 1e-05 as a string, `yes` as a boolean and 1:30 as 90; others read 0o7 as 7. So floats get a dot, and such
strings get quotes.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

# Strings that some reader would not read as a string.
_NOT_PLAINLY_TEXT = re.compile(
    r"""~|null|true|false|yes|no|on|off|y|n|\?\?\?
    |[-+]?(\.\d[\d_]*|\d[\d_]*(\.[\d_]*)?)(e[-+]?\d+)?|[-+]?\.inf|[-+]?inf|\.nan|nan
    |[-+]?0[bxo]?[\da-f_]+|[-+]?\d[\d_]*(:\d[\d_]*)+(\.[\d_]*)?
    |\d{4}-\d\d?-\d\d?([Tt\s].*)?|[-+]?[\d_.,]+|=|<<""",
    re.IGNORECASE | re.VERBOSE,
)
# libyaml's dumper, if PyYAML was built with it: the same output, ten times as fast.
_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_SafeDumper):  # type: ignore[misc]
    """Writes numbers and strings that all readers parse alike, and lists on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        """Returns True: repeated values are written out."""
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
    """The tree as YAML, with the keys in their order."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def scalar(value: Any) -> str:
    """One value as YAML on one line, as it follows `key: `."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=100_000)
    return text.removesuffix("...\n").strip()


def comments(lines: list[str]) -> str:
    """Makes each line a YAML comment of one line; empty lines are left out."""
    return "".join(f"# {' '.join(line.split())}\n" for line in lines if line)
