"""The time that a sweep still takes."""

import time

from lrsweep.formatting import format_duration

# Seconds within which steps are seen together: those of a pack.
_TOGETHER = 0.2


class Clock:
    """Estimates the time left from the time of the steps done.

    The model is loaded and evaluated before the first steps, which says nothing about the steps to come.
    """

    def __init__(self) -> None:
        # The step that each trial has reached, and the seconds of one step; None if they are not known.
        self._reached: dict[int, int] = {}
        self._each: float | None = None
        self.begin(0)

    def begin(self, steps: int) -> None:
        """Starts anew, with this many optimizer steps left."""
        self._start = time.monotonic()
        # When the first steps were seen, and how many they were.
        self._first: tuple[float, int] | None = None
        self._left = steps
        self._done = 0

    def at(self, number: int, step: int) -> None:
        """Records that a trial has reached `step`."""
        before = self._reached.get(number, 0)
        # The log of a trial that was resumed is read again from its start.
        if step <= before:
            return
        self._done += step - before
        self._reached[number] = step
        now = time.monotonic()
        if self._first is None or now - self._first[0] < _TOGETHER:
            self._first = (self._first[0] if self._first else now), self._done
        self._each = self._pace()

    def _pace(self) -> float | None:
        """The seconds of one step until now, so that a long evaluation counts while it lasts; None if not known."""
        if self._first is None or self._done == self._first[1]:
            return self._each
        return (time.monotonic() - self._first[0]) / (self._done - self._first[1])

    def ended(self, number: int, max_steps: int) -> None:
        """Records that a trial has ended; it does not need the rest of its steps."""
        self._left -= max(max_steps - self._reached.get(number, 0), 0)

    def progress(self) -> str:
        """The steps done of those there were, and the time left."""
        return f"{self._done} of {self._left} steps, {self.left()} left"

    def left(self) -> str:
        """The time left, like `2:05`; `?` before the first step."""
        if not self._done and self._each is None:
            return "?"
        each = self._pace()
        if each is None:
            # Of the first steps alone, only the time since the start is known, which is too much.
            each = (time.monotonic() - self._start) / self._done
        return format_duration(each * max(self._left - self._done, 0))
