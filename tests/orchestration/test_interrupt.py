"""Signals that end a sweep."""

import os
import signal

from lrsweep.orchestration.interrupt import Interrupt


def test_a_closed_terminal_stops_a_sweep_once_and_nohup_has_it_ignored() -> None:
    killed: list[bool] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with Interrupt(lambda: killed.append(True)) as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)  # a shell passes it on, so that it comes twice
            assert interrupt.signum == signal.SIGHUP
        assert not killed
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Interrupt(lambda: None) as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupt.signum is None
    finally:
        signal.signal(signal.SIGHUP, before)
