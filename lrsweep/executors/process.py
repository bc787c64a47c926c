"""A worker's process on this machine: told what to do over its stdin, answering over its stdout."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import IO, Any

from lrsweep import machine
from lrsweep.config import SweepConfig
from lrsweep.errors import WorkerError
from lrsweep.executors.crew import Ending, told
from lrsweep.presence import new_worker
from lrsweep.tracking import DatasetInfo

# Seconds that a worker may take to end once there is nothing left to do.
FAREWELL = 30.0
# Characters of its stderr that are kept.
_TAIL = 20_000


def order(config: SweepConfig, look: bool) -> str:
    """What a worker is told first, as text that can be sent anywhere."""
    return json.dumps({"config": config.model_dump(mode="json"), "look": look})


class Process:
    """`lrsweep.executors.child`, as somebody on the same machine sees it."""

    def __init__(self, order: str, environment: Mapping[str, str]) -> None:
        # Its name is made here: once the process is dead, there is nobody to ask.
        self.name = new_worker()
        self._oom_kills = machine.oom_kills()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lrsweep.executors.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, env=environment, start_new_session=True,
        )  # fmt: skip
        self._tell({**json.loads(order), "worker": self.name})

    def prepared(self) -> DatasetInfo:
        """Waits until the worker has looked at everything. Raises what it found, or WorkerError."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {}
        if "dataset" in answer:
            return DatasetInfo(**answer["dataset"])
        self._process.wait()
        if "fault" in answer:
            raise told(answer["fault"], answer["exit_code"])
        raise WorkerError(f"the process that looks at model and data died: {self._reason()}")

    def go(self) -> None:
        self._tell({"go": True})

    def _tell(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died, which is seen elsewhere

    def running(self) -> bool:
        return self._process.poll() is None

    def ending(self) -> Ending:
        assert self._process.stdout is not None
        for line in self._process.stdout.read().splitlines():
            answer = json.loads(line)
            if "fault" in answer:
                return Ending(answer["fault"], fault=answer["fault"], exit_code=answer["exit_code"])
        return Ending(self._reason(), self._said(), self._killed_from_outside())

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()[-_TAIL:]

    def _reason(self) -> str:
        said = self._said()
        code = self._process.returncode
        if code >= 0:
            return f"it ended with {code}: {said.splitlines()[-1][:200] if said else 'it said nothing'}"
        name = signal.Signals(-code).name
        return f"killed by {name}{': host memory ran out' if self._out_of_memory() else ''}"

    def _killed_from_outside(self) -> bool:
        code = self._process.returncode
        return code in (-signal.SIGTERM, 128 + signal.SIGTERM) or (
            code == -signal.SIGKILL and not self._out_of_memory()
        )

    def _out_of_memory(self) -> bool:
        return self._process.returncode == -signal.SIGKILL and machine.oom_kills() > self._oom_kills

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def send(self, signum: signal.Signals) -> None:
        if self.running():
            self._process.send_signal(signum)

    def stopped(self) -> None:
        """Asks the process to checkpoint and end, and returns when it has; also from a signal handler."""
        # Popen's own wait would wait for a lock that the interrupted code may hold.
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._process.pid, signal.SIGTERM)
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
