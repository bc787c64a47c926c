"""A time limit for code of others that runs in this thread: a chat template may never end."""

import contextlib
import ctypes
import math
import threading
import time
from collections.abc import Iterator

from lrsweep.errors import InputError

# Seconds that one rendering may take, and seconds between two looks.
LIMIT, _LOOK_EVERY = 5.0, 0.25


class TooSlowError(InputError):
    """The code took longer than the limit. Python itself makes it, without arguments."""

    def __init__(self) -> None:
        super().__init__(f"it takes more than {LIMIT:g} s; the model's chat template may have no end")


class TimeLimit:
    """While entered, raises TooSlowError in the thread that entered it, inside a `block` that takes too long.

    One thread watches all blocks: a timer for each of a million rows would take longer than the rows.
    """

    def __init__(self) -> None:
        self._until = math.inf
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def __enter__(self) -> "TimeLimit":
        self._thread_id = threading.get_ident()
        self._closed.clear()
        threading.Thread(target=self._watch, name="lrsweep-time-limit", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    @contextlib.contextmanager
    def block(self) -> Iterator[None]:
        """The code that has to end in time."""
        self._until = time.monotonic() + LIMIT
        try:
            yield
        finally:
            with self._lock:
                self._until = math.inf

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_EVERY):
            with self._lock:
                if time.monotonic() > self._until:
                    self._until = math.inf
                    # The interpreter raises it at the thread's next instruction.
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(self._thread_id), ctypes.py_object(TooSlowError)
                    )
