"""Shows the phases of a worker that take long: what it does while no trial has anything to show."""

import logging
import time
from collections.abc import Callable

from lrsweep.formatting import format_duration
from lrsweep.training.phases import log

# Seconds after which a phase is shown.
LONG = 2.0


class Phases:
    """The phases of one worker, as the terminal shows them."""

    def __init__(self) -> None:
        self._doing = self._shown = self._ended = ""
        self._since = 0.0

    def begin(self, doing: str) -> None:
        """Records that the worker does something else now; empty if trials show what it does."""
        now = time.monotonic()
        if self._doing and self._doing == self._shown:
            self._ended = f" ({self._doing} took {format_duration(now - self._since)})"
        self._doing, self._since = doing, now

    def news(self) -> list[str]:
        """A line about the present phase, once it takes long."""
        if not self._doing or self._doing == self._shown or time.monotonic() - self._since < LONG:
            return []
        self._shown, line, self._ended = self._doing, f"{self._doing}{self._ended}", ""
        return [line]


class PhaseHandler(logging.Handler):
    """Takes the phases of this process, while it is entered.

    Args:
        begin: Called with each phase when it begins.
    """

    def __init__(self, begin: Callable[[str], None]) -> None:
        super().__init__()
        self._begin = begin

    def emit(self, record: logging.LogRecord) -> None:
        """Passes the phase on."""
        self._begin(record.getMessage())

    def __enter__(self) -> "PhaseHandler":
        log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        log.removeHandler(self)
