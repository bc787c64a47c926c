"""Signals that end a sweep."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from lrsweep.errors import LrsweepError


class InterruptedSweepError(LrsweepError):
    """A signal ended the run; the same command resumes it.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__("interrupted; run the same command to resume")
        self.exit_code = 128 + signum


class Interrupt:
    """Records the first signal to end, so that workers can finish their step; a second one kills them and exits.

    SIGINT and SIGTERM are such signals, and SIGHUP, which a closed terminal sends, unless nohup has it ignored.

    Args:
        kill: Kills the workers.

    Attributes:
        signum: The signal; None before it comes.
    """

    def __init__(self, kill: Callable[[], None]) -> None:
        self._kill = kill
        self.signum: int | None = None

    def __enter__(self) -> "Interrupt":
        # Python allows handlers in the main thread only; a program may run a sweep in another.
        own = threading.current_thread() is threading.main_thread()
        signals = [signal.SIGINT, signal.SIGTERM] if own else []
        if own and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signals.append(signal.SIGHUP)
        self._before = {s: signal.signal(s, self._received) for s in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _received(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGHUP:
            return  # a shell passes a closed terminal's on: it comes twice
        if self.signum is not None:
            self._kill()
            os._exit(128 + signum)
        self.signum = signum
