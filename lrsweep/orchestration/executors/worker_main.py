"""The main program of a worker's process: `python -m lrsweep.orchestration.executors.worker_main`.

It reads requests from stdin and writes answers to stdout, one JSON object per line:

    {"config": ..., "look": ..., "worker": ...}  prepare  -> {"dataset": ...}
    {"start": true}                              train    -> nothing

Instead of either answer, or before it ends: {"fault": ..., "exit_code": ..., "traceback": ...}. At any time:
{"phase": ...}, what it does from now on.

The end of stdin means that the controller has ended: the worker checkpoints and ends, as on SIGTERM.
"""

import contextlib
import faulthandler
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import IO, Any, NoReturn

from lrsweep.config import search_space
from lrsweep.config.schema import validate
from lrsweep.errors import LrsweepError, UnexpectedError
from lrsweep.files.logs import logging_to, unexpected
from lrsweep.files.paths import SweepFolder
from lrsweep.libraries import quiet
from lrsweep.orchestration.executors.phases import PhaseHandler
from lrsweep.orchestration.liveness import Liveness
from lrsweep.orchestration.preflight import prepare
from lrsweep.orchestration.worker import Worker, start_beating, work
from lrsweep.search.study_lifecycle import join_study


def main() -> None:
    """Prepares, trains and exits."""
    faulthandler.enable()
    quiet()
    answers = _own_stdout()
    stop = threading.Event()
    # SLURM announces the end of a job with SIGUSR1 or SIGUSR2.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, lambda *_: stop.set())
    try:
        requests = _Requests(stop)
    except RuntimeError as fault:  # no further thread may be started
        _fail(answers, unexpected(fault, "starting a worker"))
    try:
        with PhaseHandler(lambda doing: _answer(answers, {"phase": doing})):
            _run(requests, answers, stop)
    except LrsweepError as fault:
        if requests.working and isinstance(fault, UnexpectedError):
            # It ends like a worker that dies: another one tries its trials again.
            print(fault, file=sys.stderr)
        else:
            _fail(answers, fault)
        _exit(fault.exit_code)
    _exit(143 if stop.is_set() else 0)


def _fail(answers: IO[str], fault: LrsweepError) -> NoReturn:
    """Answers with the error that ends this worker, and exits."""
    traceback = fault.traceback if isinstance(fault, UnexpectedError) else ""
    _answer(answers, {"fault": str(fault), "exit_code": fault.exit_code, "traceback": traceback})
    _exit(fault.exit_code)


def _run(requests: "_Requests", answers: IO[str], stop: threading.Event) -> None:
    request = requests.next()
    try:
        config = validate(request["config"])
        axes = search_space.axes(config)
        engine, dataset = prepare(config, axes, look=request["look"])
    except LrsweepError:
        raise
    except Exception as fault:
        raise unexpected(fault, "checking model and data") from fault
    _answer(answers, {"dataset": asdict(dataset)})
    requests.next()
    folder = SweepFolder(config.name)
    with logging_to(folder, config.redactor):
        liveness = Liveness(folder.path, request["worker"])
        try:
            study = join_study(config, axes, folder.path, dataset.fingerprint, liveness)
            start_beating(study, liveness.worker)
            work(Worker(config, folder, study, stop), engine)
        finally:
            liveness.close()


class _Requests(threading.Thread):
    """Reads requests in a thread. At the end of stdin, it sets `stop`, or exits if there is no trial to checkpoint yet.

    Args:
        stop: Makes the worker checkpoint and end.

    Attributes:
        working: Whether the worker has been told to train.
    """

    def __init__(self, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._stop_work = stop
        self._received: queue.Queue[Mapping[str, Any]] = queue.Queue()
        self.working = False
        self.start()

    def next(self) -> Mapping[str, Any]:
        """Waits for the next request and returns it."""
        request = self._received.get()
        self.working = "start" in request
        return request

    def run(self) -> None:
        """Runs in the thread."""
        for line in sys.stdin:
            self._received.put(json.loads(line))
        self._stop_work.set()
        while not self.working:
            if self._received.empty():
                os._exit(143)
            time.sleep(0.1)


def _own_stdout() -> IO[str]:
    """The real stdout, for answers; from here on, everything that libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _answer(answers: IO[str], message: Mapping[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        answers.write(json.dumps(message) + "\n")
        answers.flush()


def _exit(code: int) -> NoReturn:
    logging.shutdown()
    sys.stderr.flush()
    # A normal exit could hang in the threads of torch or of the database.
    os._exit(code)


if __name__ == "__main__":
    main()
