"""Python values as Hydra's overrides."""

import re
from collections.abc import Mapping
from typing import Any

from lrsweep.config.hydra_compose import quoted

# Words that mean a value, not a text, where they are not quoted.
_VALUES = ("true", "false", "null", "nan", "inf", "yes", "no", "on", "off")


def override(key: str, value: Any) -> str:
    """An override as the command line takes it: `space.optimizer.lr=[0.0001,0.001]`.

    Args:
        key: A dotted key, or a group.
        value: Its value: a number, a text, None, a truth value, or a list or mapping of such.
    """
    return f"{key}={_text(value)}"


def _text(value: Any) -> str:
    if hasattr(value, "tolist"):  # numpy's
        value = value.tolist()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_text(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    text = str(value)
    if re.fullmatch(r"[A-Za-z_][\w./-]*", text) and text.lower() not in _VALUES:
        return text
    return quoted(text)
