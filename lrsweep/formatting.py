"""Numbers and values as text for people."""

import re
from typing import Any

# What a terminal would obey or an encoder refuse: control characters except tab and newline, marks that reverse the
# direction of text, separators of lines, and halves of characters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text of others with its control characters and escape sequences shown as escapes."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def format_value(value: Any) -> str:
    """A config value as short text: floats have 4 significant digits, lists are joined by commas."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ",".join(format_value(part) for part in value)
    return printable(str(value))


def format_loss(value: float | None) -> str:
    """A loss with four decimals; a dash for None."""
    return "-" if value is None else f"{value:.4f}"


def format_factor(value: float) -> str:
    """A factor with two significant digits, and no exponent: 9.1, 230."""
    return str(int(float(f"{value:.2g}"))) if value >= 10 else f"{value:.2g}"


def format_duration(seconds: float) -> str:
    """Seconds as 2:05 or 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
