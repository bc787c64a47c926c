"""The user's own trainer as the engine: each trial is their command, and its curve is read from what the trainer writes."""

import json
import logging
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lrsweep.engines import Host, Measurement, Outcome, Trial, failed
from lrsweep.outputs import disk_faults, write

log = logging.getLogger(__name__)

# Seconds between two looks at the logs, and from asking a command to end until it is made to.
_LOOK_EVERY, _GRACE = 0.25, 10.0
_METRICS = ("loss", "eval_loss", "learning_rate", "grad_norm")
NAME = "external"


class ExternalEngine:
    """Runs up to `at_once` commands; on GPUs, each sees one of `gpus` (CUDA_VISIBLE_DEVICES).

    In `command`, {config} is the trial's config file and {output} its output folder; `text` writes that file for a trial and
    an output folder.
    """

    def __init__(self, command: str, text: Callable[[Trial, Path], str], at_once: int, gpus: Sequence[str]) -> None:
        self._command = command
        self._text = text
        self._at_once = at_once
        self._gpus = list(gpus)

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
                    host.finish(process.outcome)
                    running.remove(process)
                    more = True  # what has just ended may be what the search was waiting for
                if running and not over:
                    time.sleep(_LOOK_EVERY)
        finally:
            for process in running:
                process.end()

    def _started(self, trial: Trial, host: Host, running: Sequence["_Process"]) -> "list[_Process]":
        taken = {process.gpu for process in running}
        gpu = next((gpu for gpu in self._gpus if gpu not in taken), None)
        try:
            return [_start(trial, self._command, self._text, gpu)]
        except OSError as fault:
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

    def measured(self) -> list[Measurement]:
        """What the trainer has logged since the last look, in the order of its steps."""
        # Before its logs are read: what a process writes last has to be among what is read last.
        self._code = self.process.poll()
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
        if self._code is not None:
            self.console.close()
        return [Measurement(self.trial.number, step, found[step]) for step in sorted(found)]

    def over(self, told: Sequence[Measurement], stop: frozenset[int]) -> bool:
        """Whether the trial has ended, by itself or because it has to; `outcome` then says how."""
        number, code = self.trial.number, self._code
        bad = next((measurement for measurement in told if measurement.not_finite), None)
        if bad is not None:
            self.end()
            self.outcome = Outcome(number, bad.step, "diverged", f"{bad.not_finite} at step {bad.step}", NAME)
        elif code is None and self._at_the_end():
            # The rest of a longer schedule, or of the trainer's own farewell, is not waited for.
            self.end()
            self.outcome = Outcome(number, self._last, "complete", engine=NAME)
        elif code is None and number in stop:
            self.end()
            self.outcome = Outcome(number, self._last, "stopped", engine=NAME)
        elif code is None:
            return False
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
        """Ends the command and all that it has started."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, signum)
                self.process.wait(_GRACE)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
            break
        self.console.close()

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
        # An earlier attempt's logs are not this one's.
        for path in _logs(folder):
            path.unlink()
        console = open(output, "wb")  # noqa: SIM115 - closed when the command has ended
    write(config, text(trial, folder))
    words = [
        word.replace("{config}", str(config.resolve())).replace("{output}", str(folder.resolve()))
        for word in shlex.split(command)
    ]
    environment = dict(os.environ) if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
    except OSError:
        console.close()
        raise
    return _Process(trial, gpu, folder, process, console)


def _logs(folder: Path) -> list[Path]:
    """LLaMA-Factory's log, and transformers' own in the folder and its checkpoints, the latest last."""
    states = [*folder.glob("trainer_state.json"), *folder.glob("checkpoint-*/trainer_state.json")]
    return [*folder.glob("trainer_log.jsonl"), *sorted(states, key=lambda path: path.stat().st_mtime)]


def _rows(folder: Path) -> Iterator[Mapping[str, Any]]:
    for path in _logs(folder):
        text = path.read_text(encoding="utf-8", errors="replace")
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
