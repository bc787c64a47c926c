"""The engine that runs the user's own trainer.

Each trial is one run of the user's command. Its curve is read from the logs that the trainer writes.
"""

import contextlib
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lrsweep.errors import LrsweepError
from lrsweep.files.atomic import disk_faults, write_text
from lrsweep.files.paths import expanded
from lrsweep.training.engines import Host, Measurement, Outcome, Trial, failed
from lrsweep.training.engines.left_over import TRIAL, Guard, end_left_over

log = logging.getLogger(__name__)

# Seconds between two reads of the logs; between SIGTERM and SIGKILL for a command; and then for its subprocesses.
_POLL_EVERY, _GRACE, _SUBPROCESS_GRACE = 0.25, 10.0, 1.0
# Signals that a service manager or SLURM may send to the trainer itself, as well as to the worker.
_ASKED_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_METRICS = ("loss", "eval_loss", "learning_rate", "grad_norm")
NAME = "external"


class ExternalEngine:
    """Runs the user's command once for each trial, several at a time.

    It reads `trainer_log.jsonl` (LLaMA-Factory) and `trainer_state.json` (transformers) from the output folder, and
    needs at least one value of the metric. A trial is complete when it has one at step `training.max_steps` or
    later, or when its command exits with 0.

    Args:
        command: The command line, without shell syntax. `{config}` stands for the trial's config file and `{output}`
            for its output folder.
        text: Returns the contents of that config file, given a trial and its output folder.
        at_once: The most commands to run at the same time.
        gpus: The GPUs, as CUDA_VISIBLE_DEVICES names them. Each command gets an equal share of them; with fewer GPUs
            than commands, CUDA_VISIBLE_DEVICES is left as it is.
        python: The Python of the command's environment, whose folder comes first on the command's PATH; None leaves it.
        metric: The metric that the sweep ranks trials by, and its name in their measurements.
    """

    def __init__(
        self,
        command: str,
        text: Callable[[Trial, Path], str],
        at_once: int,
        gpus: Sequence[str],
        python: str | None = None,
        metric: tuple[str, str] = ("eval_loss", "eval_loss"),
    ) -> None:
        self.command = command
        self.text = text
        self.metric = metric
        self._at_once = at_once
        self.path = path_with(python)
        share = len(gpus) // at_once
        self._guard: Guard | None = None
        self._gpus = [",".join(gpus[i * share : (i + 1) * share]) for i in range(at_once)] if share else []

    def run(self, host: Host) -> None:
        """Trains every trial of the host. A command that fails ends its trial, not the run."""
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
                ended = [process for process, measurements in measured if process.has_ended(measurements, stop)]
                for process in ended:
                    process.end()
                    host.finish(process.outcome)
                    running.remove(process)
                    more = True  # the search may have waited for this trial
                if running and not ended:
                    time.sleep(_POLL_EVERY)
        finally:
            for process in running:
                process.send(signal.SIGTERM)
            for process in running:
                process.end()
            if self._guard is not None:
                self._guard.close()
                self._guard = None

    def _started(self, trial: Trial, host: Host, running: Sequence["_Process"]) -> "list[_Process]":
        """The trial's process, on GPUs that no other one uses; empty if the command cannot be started."""
        taken = {process.gpu for process in running}
        gpu = next((gpu for gpu in self._gpus if gpu not in taken), None)
        self._guard = self._guard or Guard()
        try:
            return [_start(self, self._guard, trial, gpu)]
        except (FileNotFoundError, PermissionError, _StillRunningError) as fault:
            host.finish(failed(trial, fault))
            return []


@dataclass
class _Process:
    """A trial's command while it runs.

    Attributes:
        trial: The trial.
        gpu: The command's CUDA_VISIBLE_DEVICES; None to leave it as it is.
        folder: The command's output folder.
        process: The command.
        console: The file that takes its stdout and stderr.
        metric: The metric that ranks the trials, and its name in their measurements.
        outcome: How the trial ended, once `has_ended` has returned True.
    """

    trial: Trial
    gpu: str | None
    folder: Path
    process: subprocess.Popen[bytes]
    console: IO[bytes]
    metric: tuple[str, str]
    outcome: Outcome = field(default=Outcome(-1, 0, "failed"))
    # The last step reported for each metric, and for any.
    _steps: dict[str, int] = field(default_factory=dict)
    _last: int = 0
    # The metric's values since the last mean.
    _recent: list[float] = field(default_factory=list)
    _smoothed_at: int = 0
    _has_eval: bool = False
    # The exit code, None while it runs.
    _code: int | None = None
    # Whether a signal that was not ours has ended it.
    _signalled: bool = False

    def measured(self) -> list[Measurement]:
        """The metrics that the trainer has logged since the last call, by ascending step."""
        self._code = self._exit_code()  # before the logs, so that those of a command that has ended are complete
        rows = sorted(_rows(self.folder), key=lambda row: row["step"])
        found: dict[int, dict[str, float]] = {}
        for row in rows:
            step = int(row["step"])
            for name in (*_METRICS, self.metric[0]):
                value = row.get(name)
                # Several logs may have the same step.
                if isinstance(value, int | float) and step > self._steps.get(name, -1):
                    found.setdefault(step, {})[name] = float(value)
        if self.metric[0] != self.metric[1]:
            self._smooth(found)
        for step, metrics in found.items():
            for name in metrics:
                self._steps[name] = max(step, self._steps.get(name, -1))
            self._last = max(self._last, step)
            self._has_eval = self._has_eval or self.metric[1] in metrics
        return [Measurement(self.trial.number, step, found[step]) for step in sorted(found)]

    def _smooth(self, found: dict[int, dict[str, float]]) -> None:
        """Adds the mean of the metric over the last steps, where an evaluation would be."""
        name, smoothed = self.metric
        every, until = self.trial.config.training.eval_every, self.trial.config.training.max_steps
        for step in sorted(found):
            if name in found[step] and self._smoothed_at < until:
                self._recent.append(found[step][name])
                # The trainer may log less often, and not at the last step of a trial.
                if step - self._smoothed_at >= every or step >= until:
                    found[step][smoothed] = sum(self._recent) / len(self._recent)
                    self._recent.clear()
                    self._smoothed_at = step

    def has_ended(self, measurements: Sequence[Measurement], stop: Container[int]) -> bool:
        """Returns whether the trial has ended or must end, and sets `outcome` if so.

        Args:
            measurements: The trial's new measurements.
            stop: The numbers of the trials that the host wants to stop.
        """
        number, code = self.trial.number, self._code
        bad = next((measurement for measurement in measurements if measurement.not_finite), None)
        if bad is not None:
            self.outcome = Outcome(number, bad.step, "diverged", f"{bad.not_finite} at step {bad.step}", NAME)
        elif code is None and self._at_the_end():
            # Do not wait for the rest of a longer schedule, or for the trainer to save and exit.
            self.outcome = Outcome(number, self._last, "complete", engine=NAME)
        elif code is None and number in stop:
            self.outcome = Outcome(number, self._last, "stopped", engine=NAME)
        elif code is None:
            return False
        elif code < 0 and -code in _ASKED_TO_END and not self._signalled:
            # The sender signals the worker too, perhaps a moment later: give the host time to stop this trial.
            self._signalled = True
            return False
        elif code != 0 and number in stop:
            self.outcome = Outcome(number, self._last, "stopped", engine=NAME)
        elif code != 0:
            self.outcome = Outcome(number, self._last, "failed", self._reason(code), NAME)
        elif not self._has_eval:
            logs = f"neither trainer_log.jsonl nor trainer_state.json in {self.folder} has one"
            reason = f"it wrote no {self.metric[0]}: {logs}"
            self.outcome = Outcome(number, self._last, "failed", reason, NAME)
        else:
            self.outcome = Outcome(number, self._last, "complete", engine=NAME)
        return True

    def _exit_code(self) -> int | None:
        """The command's exit code, negative for a signal; None while it runs.

        The command stays a zombie until `end`: as long as it is one, its process id, and with it its group's id, cannot
        become another program's, and signals reach nobody else.
        """
        if self.process.returncode is not None or not hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
            return self.process.poll()
        ended = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def _at_the_end(self) -> bool:
        return self._steps.get(self.metric[1], -1) >= self.trial.config.training.max_steps

    def end(self) -> None:
        """Ends the command and all its subprocesses, which may outlive it if it has exited by itself."""
        self.send(signal.SIGTERM)
        _wait_until(lambda: self._exit_code() is not None, _GRACE)
        _wait_until(lambda: not _in_group(self.process.pid), _SUBPROCESS_GRACE)
        self.send(signal.SIGKILL)
        # And the subprocesses that have left the group.
        end_left_over(self.trial.folder)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE)
        self.console.close()

    def send(self, signum: int) -> None:
        """Sends a signal to the command's process group."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for a zombie
                os.killpg(self.process.pid, signum)

    def _reason(self, code: int) -> str:
        if code < 0:
            return f"the command was killed by {signal.Signals(-code).name}; see {self.console.name}"
        lines = Path(self.console.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1][:200] if lines else "it printed nothing"
        return f"the command ended with {code}: {last}; see {self.console.name}"


def path_with(python: str | None) -> str:
    """The PATH on which a command is looked up, with the folder of its environment's Python first."""
    usual = os.environ.get("PATH", os.defpath)
    return usual if python is None else f"{expanded(python).parent.absolute()}{os.pathsep}{usual}"


class _StillRunningError(LrsweepError):
    """An earlier attempt's command cannot be ended: a second one would write into the same folder."""


def _start(engine: ExternalEngine, guard: Guard, trial: Trial, gpu: str | None) -> _Process:
    """Starts a trial's command in an output folder without logs of earlier attempts."""
    folder = trial.folder / "run"
    config, output = trial.folder / "trainer.yaml", trial.folder / "output.log"
    with disk_faults(trial.folder):
        folder.mkdir(parents=True, exist_ok=True)
        # An earlier attempt's logs are not this one's, and a killed sweep may have left its command running.
        if alive := end_left_over(trial.folder):
            raise _StillRunningError(f"process {alive[0]} of an earlier attempt cannot be killed; end it, then resume")
        for log_file in _logs(folder):
            log_file.unlink()
        console = open(output, "wb")  # noqa: SIM115 - open until the command has ended
    write_text(config, engine.text(trial, folder))
    arguments = [
        word.replace("{config}", str(config.resolve())).replace("{output}", str(folder.resolve()))
        for word in shlex.split(engine.command)
    ]
    arguments[0] = shutil.which(arguments[0], path=engine.path) or arguments[0]
    environment = {**os.environ, "PATH": engine.path, TRIAL: str(trial.folder.resolve()), **guard.environment}
    environment |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    except OSError:
        console.close()
        raise
    guard.watch(process.pid)
    return _Process(trial, gpu, folder, process, console, engine.metric)


def _wait_until(done: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        time.sleep(0.05)


def _in_group(group: int) -> bool:
    """Whether a process of the group still runs; zombies do not."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _logs(folder: Path) -> list[Path]:
    """LLaMA-Factory's log, and transformers' logs in the folder and its checkpoints."""
    names = ("trainer_log.jsonl", "trainer_state.json", "checkpoint-*/trainer_state.json")
    return [path for name in names for path in folder.glob(name)]


def _rows(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of all logs that have a step, with transformers' names."""
    for path in _logs(folder):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue  # a checkpoint that the trainer has deleted meanwhile
        for row in _jsonl(text) if path.suffix == ".jsonl" else _history(text):
            step = row.get("step", row.get("current_steps"))
            if isinstance(step, int):
                yield {**row, "step": step, "learning_rate": row.get("learning_rate", row.get("lr"))}


def _jsonl(text: str) -> Iterator[Mapping[str, Any]]:
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line is not complete yet
        if isinstance(row, dict):
            yield row


def _history(text: str) -> Iterator[Mapping[str, Any]]:
    try:
        state = json.loads(text)
    except json.JSONDecodeError:
        return  # the file is not complete yet
    yield from (row for row in state.get("log_history", []) if isinstance(row, dict))
