"""A worker's process on this machine. It gets requests over stdin and answers over stdout (`worker_main.py`)."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

from lrsweep import hardware
from lrsweep.config.schema import SweepConfig
from lrsweep.errors import WorkerError
from lrsweep.formatting import printable
from lrsweep.orchestration.executors.phases import Phases
from lrsweep.orchestration.executors.worker_pool import WorkerResult, reported
from lrsweep.orchestration.liveness import new_worker_name
from lrsweep.tracking import DatasetInfo

# Seconds that a worker may take to end once it has nothing to do.
END_TIMEOUT = 30.0
# Characters of a worker's stderr that are kept.
_TAIL = 20_000
# Seconds between two looks at what a process does that has not answered yet.
_POLL = 0.2
_MAIN = "lrsweep.orchestration.executors.worker_main"


def worker_request(config: SweepConfig, look: bool) -> str:
    """A worker's first request as JSON.

    Args:
        config: The sweep's config, with its passwords.
        look: Also check the gradients.
    """
    return json.dumps({"config": config.model_dump(mode="json"), "look": look})


class WorkerProcess:
    """The WorkerHandle of a worker's process on this machine. The process starts to prepare at once.

    Args:
        request: The worker's first request, made by `worker_request`.
        environment: The process's environment.

    Attributes:
        name: The worker's name in the study.
    """

    def __init__(self, request: str, environment: Mapping[str, str]) -> None:
        # The name is made here because a dead process cannot report it.
        self.name = new_worker_name()
        self._oom_kills = hardware.oom_kills()
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            # -P: the working folder's files must not be imported.
            [sys.executable, "-P", "-m", _MAIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            start_new_session=True,
        )
        self._phases = Phases()
        self._answers: queue.Queue[Mapping[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name="lrsweep-answers", daemon=True)
        self._reader.start()
        self._write({**json.loads(request), "worker": self.name})

    def _read(self) -> None:
        """Takes the answers until the process ends, which is an empty answer; phases are no answers."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if "phase" in answer:
                self._phases.begin(answer["phase"])
            else:
                self._answers.put(answer)
        self._answers.put({})

    def prepared(self, note: Callable[[str], None]) -> DatasetInfo:
        """Waits until the worker has checked everything.

        Args:
            note: Shows a line on the terminal: what takes long.

        Returns:
            The facts about the data.

        Raises:
            LrsweepError: The worker found an error.
            WorkerError: The process died.
        """
        answer = None
        while answer is None:
            with contextlib.suppress(queue.Empty):
                answer = self._answers.get(timeout=_POLL)
            for line in self.news():
                note(line)
        if "dataset" in answer:
            return DatasetInfo(**answer["dataset"])
        self._process.wait()
        if "fault" in answer:
            raise reported(answer["fault"], answer["exit_code"], answer["traceback"])
        raise WorkerError(f"the process that checks model and data died: {self._reason()}")

    def start(self) -> None:
        """Tells the worker to train."""
        self._write({"start": True})

    def _write(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has died, which `running` reports

    def running(self) -> bool:
        """Returns whether the process has not ended yet."""
        return self._process.poll() is None

    def news(self) -> list[str]:
        """What the process does, if it takes long."""
        return self._phases.news()

    def result(self) -> WorkerResult:
        """How the process ended."""
        while answer := self._answers.get():
            if "fault" in answer:
                return WorkerResult(answer["fault"], **answer)
        return WorkerResult(self._reason(), self._stderr_tail(), self._killed_from_outside())

    def _stderr_tail(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace").strip()[-_TAIL:]

    def _reason(self) -> str:
        stderr = self._stderr_tail()
        code = self._process.returncode
        if code >= 0:
            last = printable(stderr.splitlines()[-1][:200]) if stderr else "no message"
            return f"it exited with {code}: {last}"
        name = signal.Signals(-code).name
        return f"killed by {name}{': host memory ran out' if self._out_of_memory() else ''}"

    def _killed_from_outside(self) -> bool:
        code = self._process.returncode
        return code in (-signal.SIGTERM, 128 + signal.SIGTERM) or (
            code == -signal.SIGKILL and not self._out_of_memory()
        )

    def _out_of_memory(self) -> bool:
        return self._process.returncode == -signal.SIGKILL and hardware.oom_kills() > self._oom_kills

    def close(self) -> None:
        """Waits until the process has ended; kills it if it takes too long."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._stderr.close()

    def send(self, signum: signal.Signals) -> None:
        """Sends the process a signal, if it runs."""
        if self.running():
            self._process.send_signal(signum)

    def checkpoint_and_end(self) -> None:
        """Asks the process to checkpoint and end, and waits for its end. Safe in a signal handler."""
        # Popen.wait needs a lock that the interrupted code may hold.
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._process.pid, signal.SIGTERM)
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
