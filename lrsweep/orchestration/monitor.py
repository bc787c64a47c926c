"""Follows a sweep's trials in their files and the study, and sends what is new to the terminal and MLflow.

Workers only write files, which the controller reads here, whether the workers are threads, processes or on other
machines. MLflow's data can be rebuilt from the files at any time.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrsweep.analysis.diagnosis import Curve, curve, diagnose
from lrsweep.config import search_space
from lrsweep.config.schema import SweepConfig, flatten
from lrsweep.errors import InputError
from lrsweep.files.metrics_log import parse_row, read_metrics, read_rows
from lrsweep.files.paths import SweepFolder
from lrsweep.formatting import format_value
from lrsweep.report.screen import Screen
from lrsweep.search.controller_study import ControllerStudy
from lrsweep.search.records import Claim, Record, TrialSpec, TrialView
from lrsweep.tracking import Tracker
from lrsweep.training.engines import Measurement


@dataclass
class _Tail:
    """Reads the new lines of a metrics.jsonl that grows or is replaced.

    Attributes:
        path: The file.
        inode: The file's inode when it was last read.
        read: The bytes read so far.
    """

    path: Path
    inode: int = 0
    read: int = 0

    def new_rows(self) -> tuple[bool, list[dict[str, Any]]]:
        """The new lines since the last call.

        Returns:
            Whether the file was replaced since the last call, and its new complete lines. A file is replaced when its
            trial starts again or resumes from a checkpoint; then all of its lines are new.
        """
        try:
            with open(self.path, "rb") as file:
                # The inode of the open file: the path may lead to another file by now.
                inode = os.fstat(file.fileno()).st_ino
                replaced = self.inode not in (0, inode)
                if inode != self.inode:
                    self.inode, self.read = inode, 0
                file.seek(self.read)
                text = file.read()
        except FileNotFoundError:
            return False, []
        end = text.rfind(b"\n") + 1
        self.read += end
        rows = [parse_row(line) for line in text[:end].splitlines()]
        return replaced, [row for row in rows if row is not None]


@dataclass
class Monitor:
    """Shows a sweep's progress on a screen, and sends it to a tracker.

    Attributes:
        config: The sweep's config.
        folder: The sweep's folder.
        study: The sweep's study.
        tracker: Gets the trials' metrics.
        screen: Shows the trials.
    """

    config: SweepConfig
    folder: SweepFolder
    study: ControllerStudy
    tracker: Tracker
    screen: Screen
    _ended: set[int] = field(default_factory=set)
    _logs: dict[int, _Tail] = field(default_factory=dict)
    # The claims that an earlier run left: such a trial is shown once another worker has claimed it.
    _left: dict[int, Claim | None] = field(default_factory=dict)
    _curves: dict[int, Curve] = field(default_factory=dict)

    def catch_up(self) -> int:
        """Skips the trials of earlier runs, and sends the tracker the ended trials that it lacks.

        Returns:
            The number of trials sent.
        """
        trials = self.study.trials()
        self._left = {view.number: view.claim for view in trials}
        ended = {view.number: view.record for view in trials if view.record is not None}
        self._ended = set(ended)
        sent = 0
        for number in self.tracker.missing(list(ended)):
            if self._config(ended[number].spec) is None:
                continue
            self._track(number, ended[number].spec)
            for row in read_rows(self.folder.trial(number) / "metrics.jsonl"):
                self._log(number, row)
            self._finish(ended[number])
            sent += 1
        return sent

    def look(self) -> None:
        """Shows and sends everything that is new since the last call."""
        for view in self.study.trials():
            if view.number in self._ended:
                continue
            # A trial of this run that has just been paused may have lines that were not read yet.
            if view.record is None and view.number not in self._logs and not _is_running(view, self._left):
                continue
            if view.number not in self._logs and not self._begin(view):
                continue
            replaced, rows = self._logs[view.number].new_rows()
            if replaced:
                self._track(view.number, view.spec)
            for row in rows:
                self.screen.measured(self._log(view.number, row))
            if view.record is not None:
                self._ended.add(view.number)
                self._finish(view.record)
                self.screen.trial_finished(view.number, view.record.status, view.record.reason)
        self.screen.waited()

    def interrupted(self) -> None:
        """Marks the trials that have not ended as interrupted."""
        for number in self._logs.keys() - self._ended:
            self.tracker.finish_trial(number, "interrupted", {})
            self.screen.trial_interrupted(number)

    def _begin(self, view: TrialView) -> bool:
        """Starts to show a trial; returns False if its values contradict each other, so that it failed at once."""
        config = self._config(view.spec)
        if config is None:
            self._ended.add(view.number)
            self.screen.note(f"trial {view.number}: failed ({view.record.reason if view.record else 'bad values'})")
            return False
        self._logs[view.number] = _Tail(self.folder.trial(view.number) / "metrics.jsonl")
        self._track(view.number, view.spec)
        self.screen.trial_started(view.number, self._values(view.spec, config), config)
        return True

    def _config(self, spec: TrialSpec) -> SweepConfig | None:
        """The trial's config; None if its values contradict each other."""
        try:
            return search_space.trial_config(self.config, self.study.axes, spec.params, spec.overrides)
        except InputError:
            return None

    def _values(self, spec: TrialSpec, config: SweepConfig) -> dict[str, Any]:
        return search_space.trained(search_space.values(self.study.axes, spec.params), config)

    def _track(self, number: int, spec: TrialSpec) -> None:
        config = self._config(spec)
        assert config is not None
        name = title(number, {**self._values(spec, config), **spec.overrides})
        tags = {"engine": config.engine.name, "role": spec.role}
        self.tracker.start_trial(number, name, flatten(config.masked()), tags)

    def _log(self, number: int, row: dict[str, Any]) -> Measurement:
        """Sends a row to the tracker; returns it as a measurement."""
        at = row.pop("time", None)
        measurement = Measurement(number, int(row.pop("step")), row)
        self.tracker.log(measurement, at)
        return measurement

    def _finish(self, record: Record) -> None:
        """Ends a trial's run, and tags it with a diagnosis among the ended trials; the summary diagnoses again."""
        others = list(self._curves.values())
        own = self._curves[record.number] = curve(read_metrics(self.folder.trial(record.number)))
        tags = {"diagnosis": diagnose(own, others).label, "reason": record.reason, "engine": record.engine}
        self.tracker.finish_trial(record.number, record.status, {key: value for key, value in tags.items() if value})


def title(number: int, values: Mapping[str, Any]) -> str:
    """A trial's name in MLflow: its number and its values, with short keys."""
    shown = " ".join(f"{key.rsplit('.', 1)[-1]}={format_value(value)}" for key, value in values.items())
    return f"{number:04d} {shown}"


def _is_running(view: TrialView, left: Mapping[int, Claim | None]) -> bool:
    """Returns whether a worker of this run has the trial."""
    return view.claim is not None and view.claim.worker != "" and view.claim != left.get(view.number)
