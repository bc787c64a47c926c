"""What happens in a sweep's trials, read from their files and the study, told to the terminal and to MLflow.

Workers only write files; whoever keeps the sweep reads them here, whether the workers are threads, processes or elsewhere.
MLflow is a view that can be made again from the files at any time.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrsweep import curves, outputs, space
from lrsweep.config import SweepConfig, flatten
from lrsweep.engines import Measurement
from lrsweep.errors import InputError
from lrsweep.outputs import SweepFolder
from lrsweep.report.screen import Screen
from lrsweep.report.words import shown
from lrsweep.study import Study
from lrsweep.tracking import Tracker
from lrsweep.trials import Point, Record, Seen


@dataclass
class _Log:
    """A metrics.jsonl that may still grow, or be written anew. `read` is how far it has been read, in bytes."""

    path: Path
    inode: int = 0
    read: int = 0

    def renewed(self) -> bool:
        """Whether it is another file than at the last look: the trial has begun again, or gone on from a checkpoint."""
        try:
            inode = os.stat(self.path).st_ino
        except FileNotFoundError:
            return False
        if inode == self.inode:
            return False
        first, self.inode, self.read = self.inode == 0, inode, 0
        return not first

    def rows(self) -> Iterator[dict[str, Any]]:
        """The whole lines that came since."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.read)
                text = file.read()
        except FileNotFoundError:
            return
        end = text.rfind(b"\n") + 1
        self.read += end
        for line in text[:end].splitlines():
            yield json.loads(line)


@dataclass
class Watch:
    """A sweep as it goes on, for one terminal and one tracker."""

    config: SweepConfig
    folder: SweepFolder
    study: Study
    tracker: Tracker
    screen: Screen
    _ended: set[int] = field(default_factory=set)
    _logs: dict[int, _Log] = field(default_factory=dict)
    # Who had the trials that an earlier run left: shown once somebody takes them up.
    _left: dict[int, tuple[str, int] | None] = field(default_factory=dict)
    _curves: dict[int, curves.Curve] = field(default_factory=dict)

    def catch_up(self) -> int:
        """Takes what earlier runs did as known; tells the tracker of ended trials what it has not got to their end.

        Answers how many trials those were.
        """
        trials = self.study.trials()
        self._left = {seen.number: seen.claim for seen in trials}
        ended = {seen.number: seen.record for seen in trials if seen.record is not None}
        self._ended = set(ended)
        told = 0
        for number in self.tracker.missing(list(ended)):
            if self._config(ended[number].point) is None:
                continue
            self._track(number, ended[number].point)
            for row in outputs.read_rows(self.folder.trial(number) / "metrics.jsonl"):
                self._told(number, row)
            self._finish(ended[number])
            told += 1
        return told

    def look(self) -> None:
        """Tells what is new."""
        for seen in self.study.trials():
            if seen.number in self._ended or (seen.record is None and not _at_work(seen, self._left)):
                continue
            if seen.number not in self._logs and not self._begin(seen):
                continue
            log = self._logs[seen.number]
            if log.renewed():
                self._track(seen.number, seen.point)
            for row in log.rows():
                self.screen.measured(self._told(seen.number, row))
            if seen.record is not None:
                self._ended.add(seen.number)
                self._finish(seen.record)
                self.screen.trial_finished(seen.number, seen.record.status, seen.record.reason)

    def interrupted(self) -> None:
        """Ends what has not ended, for now."""
        for number in self._logs.keys() - self._ended:
            self.tracker.finish_trial(number, "interrupted", {})
            self.screen.trial_interrupted(number)

    def _begin(self, seen: Seen) -> bool:
        """Begins to tell of a trial; False where its values cannot go together, and there is nothing to tell but that."""
        config = self._config(seen.point)
        if config is None:
            self._ended.add(seen.number)
            self.screen.note(f"trial {seen.number}: failed ({seen.record.reason if seen.record else 'bad values'})")
            return False
        self._logs[seen.number] = _Log(self.folder.trial(seen.number) / "metrics.jsonl")
        self._track(seen.number, seen.point)
        self.screen.trial_started(seen.number, self._values(seen.point, config), config)
        return True

    def _config(self, point: Point) -> SweepConfig | None:
        try:
            return space.trial_config(self.config, self.study.axes, point.params, point.overrides)
        except InputError:
            return None

    def _values(self, point: Point, config: SweepConfig) -> dict[str, Any]:
        return space.trained(space.values(self.study.axes, point.params), config)

    def _track(self, number: int, point: Point) -> None:
        config = self._config(point)
        assert config is not None
        name = title(number, {**self._values(point, config), **point.overrides})
        tags = {"engine": config.engine.name, "role": point.role}
        self.tracker.start_trial(number, name, flatten(outputs.masked(config)), tags)

    def _told(self, number: int, row: dict[str, Any]) -> Measurement:
        """Tells the tracker a row; the measurement that it is."""
        at = row.pop("time", None)
        measurement = Measurement(number, int(row.pop("step")), row)
        self.tracker.log(measurement, at)
        return measurement

    def _finish(self, record: Record) -> None:
        """Ends a trial's run, with what its curve shows beside those that have ended; in the end the summary looks again."""
        others = list(self._curves.values())
        own = self._curves[record.number] = curves.curve(outputs.read_metrics(self.folder.trial(record.number)))
        tags = {"diagnosis": curves.diagnose(own, others).label, "reason": record.reason, "engine": record.engine}
        self.tracker.finish_trial(record.number, record.status, {key: value for key, value in tags.items() if value})


def title(number: int, values: Mapping[str, Any]) -> str:
    """A trial's name in MLflow: its number and axis values, by their short names."""
    return f"{number:04d} " + " ".join(f"{key.rsplit('.', 1)[-1]}={shown(value)}" for key, value in values.items())


def _at_work(seen: Seen, left: Mapping[int, tuple[str, int] | None]) -> bool:
    """Whether a worker of this run has the trial."""
    return seen.claim is not None and seen.claim[0] != "" and seen.claim != left.get(seen.number)
