"""The terminal, on which the words of others (errors, values, file names) are text: no markup, no escape sequences."""

from typing import Any

from rich.console import Console
from rich.text import Text

from lrsweep.formatting import printable


class Terminal(Console):
    """Rich's console, which shows every string as it is, with control characters escaped.

    Args:
        stderr: Whether it is stderr instead of stdout.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as Rich prints it: on a line of its own, or in a table's cell."""
        return super().render_str(printable(text), **options)
