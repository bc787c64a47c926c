"""A worker's process on this machine: told what to do over its stdin, answering over its stdout."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import IO, Any

from lrsweep import machine
from lrsweep.config import SweepConfig
from lrsweep.errors import LrsweepError, WorkerError
from lrsweep.presence import new_worker
from lrsweep.tracking import DatasetInfo

# Seconds that a worker may take to end once there is nothing left to do.
_FAREWELL = 30.0
# Characters of its stderr that are kept.
_TAIL = 4000


class Process:
    """`lrsweep.executors.child` as somebody on the same machine sees it."""

    def __init__(self, config: SweepConfig, look: bool, environment: Mapping[str, str]) -> None:
        # Its name is made here: once the process is dead, there is nobody to ask.
        self.name = new_worker()
        self.seen_off = False
        self._oom_kills = machine.oom_kills()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lrsweep.executors.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, env=environment, start_new_session=True,
        )  # fmt: skip
        self._tell({"config": config.model_dump(mode="json"), "look": look, "worker": self.name})

    def prepared(self) -> DatasetInfo:
        """Waits until the worker has looked at everything. Raises what it found, or InputError."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {}
        if "dataset" in answer:
            return DatasetInfo(**answer["dataset"])
        self._process.wait()
        if "fault" in answer:
            raise _fault(answer)
        raise WorkerError(f"the process that looks at model and data died: {self.reason()}")

    def go(self) -> None:
        """Has it work."""
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

    def fault(self) -> LrsweepError | None:
        """The fault that the worker has ended with, if it has said one."""
        assert self._process.stdout is not None
        for line in self._process.stdout.read().splitlines():
            answer = json.loads(line)
            if "fault" in answer:
                return _fault(answer)
        return None

    def said(self) -> str:
        """The end of what the process wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()[-_TAIL:]

    def reason(self) -> str:
        """Why the process died."""
        said = self.said()
        code = self._process.returncode
        if code >= 0:
            return f"it ended with {code}: {said.splitlines()[-1][:200] if said else 'it said nothing'}"
        name = signal.Signals(-code).name
        return f"killed by {name}{': host memory ran out' if self._out_of_memory() else ''}"

    def killed_from_outside(self) -> bool:
        """Whether somebody else ended the process: no trial of it comes to that by itself."""
        code = self._process.returncode
        return code in (-signal.SIGTERM, 128 + signal.SIGTERM) or (
            code == -signal.SIGKILL and not self._out_of_memory()
        )

    def _out_of_memory(self) -> bool:
        return self._process.returncode == -signal.SIGKILL and machine.oom_kills() > self._oom_kills

    def close(self) -> None:
        """Lets the process end, which it does by itself; one that does not is made to."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_FAREWELL)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def send(self, signum: signal.Signals) -> None:
        if self.running():
            self._process.send_signal(signum)


def _fault(answer: Mapping[str, Any]) -> LrsweepError:
    fault = LrsweepError(answer["fault"])
    fault.exit_code = answer["exit_code"]
    return fault
