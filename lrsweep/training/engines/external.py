"""The user's own trainer as the engine: each trial is their command, and its curve is read from what the trainer writes."""

import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lrsweep.files.atomic import disk_faults, write_text
from lrsweep.training.engines import Host, Measurement, Outcome, Trial, failed

log = logging.getLogger(__name__)

# Seconds between two looks at the logs; from asking a command to end until it is made to, and then what it has started.
_LOOK_EVERY, _GRACE, _CHILDRENS_GRACE = 0.25, 10.0, 1.0
# In the environment of a trial's command, and of all that it starts: the trial's folder.
_TRIAL = "LRSWEEP_TRIAL"
# What a service manager or SLURM may send to the trainer itself, beside the worker.
_ASKED_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_METRICS = ("loss", "eval_loss", "learning_rate", "grad_norm")
NAME = "external"


class ExternalEngine:
    """Runs up to `at_once` commands; each sees its share of `gpus` (CUDA_VISIBLE_DEVICES): all of them where it is alone.

    In `command`, {config} is the trial's config file and {output} its output folder; `text` writes that file for a trial and
    an output folder.
    """

    def __init__(self, command: str, text: Callable[[Trial, Path], str], at_once: int, gpus: Sequence[str]) -> None:
        self._command = command
        self._text = text
        self._at_once = at_once
        share = len(gpus) // at_once
        self._gpus = [",".join(gpus[i * share : (i + 1) * share]) for i in range(at_once)] if share else []

    def run(self, host: Host) -> None:
        """Trains every trial that `host` gives. A command that fails ends its trial, not the run."""
        running: list[_Process] = []
        try:
            more = True
            while running or more:
                while more and len(running) < self._at_once:
                    trial = host.next_trial()
                    more = trial is not None
                    if trial is not None:
                        running += self._started(trial, host, running)
                measured = [(process, process.measured()) for process in running]
                stop = host.report([m for _, measurements in measured for m in measurements])
                over = [process for process, told in measured if process.over(told, stop)]
                for process in over:
                    process.end()
                    host.finish(process.outcome)
                    running.remove(process)
                    more = True  # what has just ended may be what the search was waiting for
                if running and not over:
                    time.sleep(_LOOK_EVERY)
        finally:
            for process in running:
                process.send(signal.SIGTERM)
            for process in running:
                process.end()

    def _started(self, trial: Trial, host: Host, running: Sequence["_Process"]) -> "list[_Process]":
        taken = {process.gpu for process in running}
        gpu = next((gpu for gpu in self._gpus if gpu not in taken), None)
        try:
            return [_start(trial, self._command, self._text, gpu)]
        except (FileNotFoundError, PermissionError) as fault:
            host.finish(failed(trial, fault))
            return []


@dataclass
class _Process:
    """A trial's command while it runs. `_seen` is how far each log has been read."""

    trial: Trial
    gpu: str | None
    folder: Path
    process: subprocess.Popen[bytes]
    console: IO[bytes]
    outcome: Outcome = field(default=Outcome(-1, 0, "failed"))
    _steps: dict[str, int] = field(default_factory=dict)
    _last: int = 0
    _has_eval: bool = False
    _code: int | None = None
    _asked: bool = False

    def measured(self) -> list[Measurement]:
        """What the trainer has logged since the last look, in the order of its steps."""
        self._code = self.process.poll()  # before the logs, so that what has ended is read to its end
        rows = sorted(_rows(self.folder), key=lambda row: row["step"])
        found: dict[int, dict[str, float]] = {}
        for row in rows:
            step = int(row["step"])
            for name in _METRICS:
                value = row.get(name)
                # The same step may stand in several logs.
                if isinstance(value, int | float) and step > self._steps.get(name, -1):
                    found.setdefault(step, {})[name] = float(value)
        for step, metrics in found.items():
            for name in metrics:
                self._steps[name] = max(step, self._steps.get(name, -1))
            self._last = max(self._last, step)
            self._has_eval = self._has_eval or "eval_loss" in metrics
        return [Measurement(self.trial.number, step, found[step]) for step in sorted(found)]

    def over(self, told: Sequence[Measurement], stop: Container[int]) -> bool:
        """Whether the trial has ended, by itself or because it has to; `outcome` then says how."""
        number, code = self.trial.number, self._code
        bad = next((measurement for measurement in told if measurement.not_finite), None)
        if bad is not None:
            self.outcome = Outcome(number, bad.step, "diverged", f"{bad.not_finite} at step {bad.step}", NAME)
        elif code is None and self._at_the_end():
            # The rest of a longer schedule, or of the trainer's own farewell, is not waited for.
            self.outcome = Outcome(number, self._last, "complete", engine=NAME)
        elif code is None and number in stop:
            self.outcome = Outcome(number, self._last, "stopped", engine=NAME)
        elif code is None:
            return False
        elif code < 0 and -code in _ASKED_TO_END and not self._asked:
            # Whoever sent it has the worker hear it too, maybe a moment later.
            self._asked = True
            return False
        elif code != 0 and number in stop:
            self.outcome = Outcome(number, self._last, "stopped", engine=NAME)
        elif code != 0:
            self.outcome = Outcome(number, self._last, "failed", self._reason(code), NAME)
        elif not self._has_eval:
            reason = f"it wrote no eval_loss: neither trainer_log.jsonl nor trainer_state.json in {self.folder} has one"
            self.outcome = Outcome(number, self._last, "failed", reason, NAME)
        else:
            self.outcome = Outcome(number, self._last, "complete", engine=NAME)
        return True

    def _at_the_end(self) -> bool:
        return self._steps.get("eval_loss", -1) >= self.trial.config.training.max_steps

    def end(self) -> None:
        """Ends the command and all that it has started, which may outlive it where it has ended by itself."""
        self.send(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE)
        until = time.monotonic() + _CHILDRENS_GRACE
        while self.send(0) and time.monotonic() < until:
            time.sleep(0.05)
        self.send(signal.SIGKILL)
        # And what has left the group.
        end_left_over(self.trial.folder)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE)
        self.console.close()

    def send(self, signum: int) -> bool:
        """Sends it to the command's process group; False where none of that is left."""
        try:
            os.killpg(self.process.pid, signum)
        except (ProcessLookupError, PermissionError):  # macOS says the latter of a zombie
            return False
        return True

    def _reason(self, code: int) -> str:
        if code < 0:
            return f"the command was killed by {signal.Signals(-code).name}; see {self.console.name}"
        lines = Path(self.console.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return (
            f"the command ended with {code}: {lines[-1][:200] if lines else 'it said nothing'}; see {self.console.name}"
        )


def _start(trial: Trial, command: str, text: Callable[[Trial, Path], str], gpu: str | None) -> _Process:
    folder = trial.folder / "run"
    config, output = trial.folder / "trainer.yaml", trial.folder / "output.log"
    with disk_faults(trial.folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Of an earlier attempt, neither the logs are this one's nor what a killed sweep left running.
        end_left_over(trial.folder)
        for path in _logs(folder):
            path.unlink()
        console = open(output, "wb")  # noqa: SIM115 - closed when the command has ended
    write_text(config, text(trial, folder))
    words = [
        word.replace("{config}", str(config.resolve())).replace("{output}", str(folder.resolve()))
        for word in shlex.split(command)
    ]
    environment = {**os.environ, _TRIAL: str(trial.folder.resolve())}
    environment |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    except OSError:
        console.close()
        raise
    return _Process(trial, gpu, folder, process, console)


def end_left_over(folder: Path) -> None:
    """Ends the commands that outlived their workers on this machine, with all they have started.

    `folder` is a trial's, or a sweep's for all its trials. They are known by their environment: a record on disk would come too
    late for a worker that is killed just after it has started one.
    """
    import psutil

    inside = str(folder.resolve())
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            own = process.environ().get(_TRIAL, "")
            if own == inside or own.startswith(f"{inside}{os.sep}"):
                process.kill()
                found.append(process)
    # Until it is gone, it may write_text into the logs that the next attempt begins.
    psutil.wait_procs(found, timeout=_GRACE)


def _logs(folder: Path) -> list[Path]:
    """LLaMA-Factory's log, and transformers' own in the folder and its checkpoints."""
    names = ("trainer_log.jsonl", "trainer_state.json", "checkpoint-*/trainer_state.json")
    return [path for name in names for path in folder.glob(name)]


def _rows(folder: Path) -> Iterator[Mapping[str, Any]]:
    for path in _logs(folder):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue  # a checkpoint that made room for the next
        for row in _jsonl(text) if path.suffix == ".jsonl" else _history(text):
            step = row.get("step", row.get("current_steps"))
            if isinstance(step, int):
                yield {**row, "step": step, "learning_rate": row.get("learning_rate", row.get("lr"))}


def _jsonl(text: str) -> Iterator[Mapping[str, Any]]:
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # half a line: the rest comes
        if isinstance(row, dict):
            yield row


def _history(text: str) -> Iterator[Mapping[str, Any]]:
    try:
        state = json.loads(text)
    except json.JSONDecodeError:
        return  # being written
    yield from (row for row in state.get("log_history", []) if isinstance(row, dict))
