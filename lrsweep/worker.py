"""One worker: it takes trials from the study, has an engine train them, and writes down what it hears.

What a trial measured, and how it ended, is on disk before the study hears of it. Terminal and MLflow are the keeper's
(`sweep.py`), who reads it there.
"""

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrsweep import masking, outputs, space
from lrsweep.claims import Claims
from lrsweep.config import SweepConfig
from lrsweep.engines import Engine, Measurement, Outcome, Stop, Trial
from lrsweep.errors import InputError, LrsweepError
from lrsweep.lockstep import Heard
from lrsweep.outputs import MetricsLog, SweepFolder
from lrsweep.presence import BEAT_EVERY
from lrsweep.study import Study
from lrsweep.trials import Point, Record

log = logging.getLogger(__name__)

# Seconds between two looks for more to do.
_LOOK_EVERY = 0.3
# At most so many where workers elsewhere look too: hundreds without a trial must not keep those with one from the database.
_LOOK_AT_LEAST_EVERY = 5.0


@dataclass
class Worker:
    """The engine's host. Once `stop` is set, trials are checkpointed and let go of, and no more are taken."""

    config: SweepConfig
    folder: SweepFolder
    study: Claims
    stop: threading.Event
    _logs: dict[int, MetricsLog] = field(default_factory=dict)
    _eval_loss: dict[int, float] = field(default_factory=dict)
    # Of the trials that it has: optimizer steps, and those of the warm-up.
    _budgets: dict[int, tuple[int, int]] = field(default_factory=dict)
    _stops: dict[int, Stop] = field(default_factory=dict)

    def next_trial(self) -> Trial | None:
        """The next trial to train, its folder made; None when there is none now, or a stop was asked for."""
        while not self.stop.is_set():
            taken = self.study.next()
            if taken is None:
                return None
            number, point = taken
            folder = self.folder.trial(number)
            ended = _read_outcome(folder)
            if ended is not None:
                # A kill came between the file and the study.
                self.study.tell(Record(number, point, **ended))
                continue
            try:
                config = space.trial_config(self.config, self.study.axes, point.params, point.overrides)
            except InputError as fault:
                # Values that are good alone may not go together; a sampler cannot know.
                self.study.tell(Record(number, point, "failed", 0, None, str(fault)))
                continue
            self._budgets[number] = (config.training.max_steps, config.scheduler.warmup(config.training.schedule_steps))
            outputs.write(folder / "config.yaml", outputs.to_yaml(outputs.masked(config)))
            return Trial(number, config, folder)
        return None

    def report(self, measurements: Sequence[Measurement]) -> Mapping[int, Stop]:
        """Writes what was measured; answers the trials that the pruner, a stop or another worker ends."""
        evals = []
        for measurement in measurements:
            number, step, metrics = measurement.number, measurement.step, measurement.metrics
            if number not in self._logs:
                self._open_log(number, step)
            self._logs[number].append(step, metrics)
            if "eval_loss" in metrics:
                self._logs[number].sync()
                self._eval_loss[number] = metrics["eval_loss"]
                # Before training all are equal, and what is not finite ends as diverged, not as pruned.
                if step > 0 and math.isfinite(metrics["eval_loss"]):
                    evals.append(Heard(number, step, *self._budgets[number], metrics["eval_loss"]))
        stop: dict[int, Stop] = self.study.report(evals)
        if self.stop.is_set():
            stop = {**dict.fromkeys(self._budgets, "paused"), **stop}
        # The first word stands: a pruned trial does not come back to life because a stop comes before its end.
        return {number: self._stops.setdefault(number, why) for number, why in stop.items()}

    def _open_log(self, number: int, first: int) -> None:
        """The log of a trial that begins, or goes on, with the step `first`."""
        self._logs[number] = MetricsLog(self.folder.trial(number), first)
        for row in self._logs[number].kept:
            self._eval_loss[number] = row.get("eval_loss", self._eval_loss.get(number, math.nan))

    def finish(self, outcome: Outcome) -> None:
        """Ends a trial; one that a stop ended goes on later."""
        number = outcome.number
        if number in self._logs:
            self._logs.pop(number).close()
        last = self._eval_loss.pop(number, math.nan)
        del self._budgets[number]
        paused = self._stops.pop(number, None) == "paused" and outcome.status == "stopped"
        if paused or not self.study.mine(number):
            self.study.release(number)
            return
        reason = masking.mask(outcome.reason)
        if outcome.in_company:
            self.study.suspect(number, reason)
            return
        status = "pruned" if outcome.status == "stopped" else outcome.status
        eval_loss = last if math.isfinite(last) else None
        record = Record(number, Point({}), status, outcome.step, eval_loss, reason, outcome.engine)
        _write_outcome(self.folder.trial(number), record)
        self.study.tell(record)
        outputs.remove_checkpoints(self.folder.trial(number))


def work(worker: Worker, engine: Engine) -> None:
    """Trains what there is, and what follows, until the keeper says that nothing does, or a stop is asked for."""
    pause = _LOOK_EVERY
    while not worker.stop.is_set():
        engine.run(worker)
        if not worker.study.waits():
            return
        time.sleep(pause)
        if worker.study.shared:
            pause = min(1.5 * pause, _LOOK_AT_LEAST_EVERY)


def start_beating(study: Study) -> None:
    """Has a thread give signs of life for as long as the process lives, where workers elsewhere look for them."""

    def beat() -> None:
        while True:
            # A database that does not answer for a while is no reason to stop beating.
            with contextlib.suppress(LrsweepError):
                study.beat()
            time.sleep(BEAT_EVERY)

    if study.shared:
        threading.Thread(target=beat, name="lrsweep-beat", daemon=True).start()


def _write_outcome(folder: Path, record: Record) -> None:
    names = ("status", "step", "eval_loss", "reason", "engine")
    outputs.write(folder / "outcome.json", json.dumps({name: getattr(record, name) for name in names}))


def _read_outcome(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found
