"""Numbers and values as text for people."""

from typing import Any


def format_value(value: Any) -> str:
    """A config value as short text: floats have 4 significant digits, lists are joined by commas."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ",".join(format_value(part) for part in value)
    return str(value)


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
