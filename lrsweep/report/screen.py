"""The terminal output of a running sweep: a live table, or plain lines if the output is not a terminal."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from lrsweep.config.objective import EVAL_LOSS, Objective
from lrsweep.config.schema import SweepConfig
from lrsweep.formatting import format_loss, format_value
from lrsweep.report.clock import Clock
from lrsweep.training.engines import Measurement

_ROWS = 16
# Seconds after which a plain screen says that the sweep is alive.
_SILENT = 30.0
_STYLES = {"running": "bold", "diverged": "red", "failed": "red", "pruned": "dim", "interrupted": "yellow"}


class Screen(Protocol):
    """Shows the progress of a sweep."""

    def running(self, trials: int, done: int, steps: int) -> contextlib.AbstractContextManager[None]:
        """A context around the training.

        Args:
            trials: The number of trials in total.
            done: How many of them have ended already.
            steps: The optimizer steps until all of them have ended or pause.
        """

    def note(self, text: str) -> None:
        """Shows one line at once."""

    def trial_started(self, number: int, values: Mapping[str, Any], config: SweepConfig) -> None:
        """Shows that a trial starts.

        Args:
            number: The trial's number.
            values: The trial's axis values.
            config: The trial's config.
        """

    def measured(self, measurement: Measurement) -> None:
        """Shows metrics of a trial."""

    def trial_finished(self, number: int, status: str, reason: str) -> None:
        """Shows that a trial has ended.

        Args:
            number: The trial's number.
            status: How it ended.
            reason: Why it ended early; empty for a complete trial.
        """

    def trial_interrupted(self, number: int) -> None:
        """Shows that a trial was interrupted, to be resumed in a later run."""

    def waited(self) -> None:
        """Says that the sweep is alive, if nothing else has for a while. Called often while trials run."""


@dataclass
class _Row:
    """What a screen shows of a trial."""

    values: Mapping[str, Any]
    max_steps: int
    status: str = "running"
    step: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    # What trials are ranked by, and its last value as a score.
    objective: Objective = field(default_factory=Objective)
    score: float | None = None


class LiveScreen:
    """A table of the trials and one progress bar, redrawn in place.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[int, _Row] = {}
        self._clock = Clock()

    @contextlib.contextmanager
    def running(self, trials: int, done: int, steps: int) -> Iterator[None]:
        """Shows the table and the progress bar in this block. They stay if it is interrupted."""
        self._begin(trials, done, steps)
        with Live(console=self._console, refresh_per_second=4, get_renderable=self._draw, transient=True) as live:
            try:
                yield
            except BaseException:
                live.transient = False
                raise

    def _begin(self, trials: int, done: int, steps: int) -> None:
        self._clock.begin(steps)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]} left"),
            console=self._console,
        )
        self._task = self._progress.add_task("trials", total=trials, completed=done, left="?")

    def note(self, text: str) -> None:
        """Prints a line above the table."""
        self._console.print(text, highlight=False)

    def trial_started(self, number: int, values: Mapping[str, Any], config: SweepConfig) -> None:
        """Adds a row for the trial."""
        self._rows[number] = _Row(values, config.training.max_steps, objective=config.search.objective)

    def measured(self, measurement: Measurement) -> None:
        """Updates the trial's row."""
        row = self._rows[measurement.number]
        row.step = measurement.step
        row.loss = measurement.metrics.get("loss", row.loss)
        row.eval_loss = measurement.metrics.get("eval_loss", row.eval_loss)
        score = row.objective.score(measurement.metrics)
        row.score = row.score if score is None else score
        self._clock.at(measurement.number, measurement.step)

    def trial_finished(self, number: int, status: str, reason: str) -> None:
        """Shows the status in the trial's row, and advances the progress bar."""
        row = self._rows[number]
        row.status = status
        self._clock.ended(number, row.max_steps)
        self._progress.update(self._task, advance=1)

    def trial_interrupted(self, number: int) -> None:
        """Shows the interruption in the trial's row."""
        self._rows[number].status = "interrupted"

    def waited(self) -> None:
        """Does nothing: the table shows each step."""

    def _draw(self) -> Group:
        table = Table(box=None, header_style="bold", pad_edge=False)
        rows = list(self._rows.items())[-_ROWS:]
        table.add_column("trial", justify="right")
        for key in rows[0][1].values if rows else ():
            table.add_column(key.rsplit(".", 1)[-1], justify="right")
        for name in ("step", "loss", "eval loss"):
            table.add_column(name, justify="right")
        table.add_column("status")
        for number, row in rows:
            table.add_row(
                str(number),
                *(format_value(value) for value in row.values.values()),
                f"{row.step}/{row.max_steps}",
                format_loss(row.loss),
                format_loss(row.eval_loss),
                row.status,
                style=_STYLES.get(row.status),
            )
        self._progress.update(self._task, left=self._clock.left())
        return Group(table, Text(self._best()), self._progress)

    def _best(self) -> str:
        """The best trial so far: of the complete ones, or else of those that run."""
        measured = [(number, row) for number, row in self._rows.items() if row.score is not None]
        finite = [entry for entry in measured if entry[1].status not in ("diverged", "failed")]
        complete = [entry for entry in finite if entry[1].status == "complete"]
        if not finite:
            return ""
        number, row = min(complete or finite, key=lambda entry: entry[1].score or 0.0)
        values = " ".join(f"{key.rsplit('.', 1)[-1]}={format_value(value)}" for key, value in row.values.items())
        return f"best so far: trial {number} {values}, {row.objective.name} {row.objective.text(row.score)}"


class PlainScreen:
    """One line for each evaluation, for logs and pipes.

    Args:
        console: The output.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[int, _Row] = {}
        self._clock = Clock()
        self._done = 0
        self._total = 0
        self._printed = time.monotonic()

    @contextlib.contextmanager
    def running(self, trials: int, done: int, steps: int) -> Iterator[None]:
        """Counts trials and time in this block."""
        self._clock.begin(steps)
        self._total, self._done = trials, done
        yield

    def note(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, highlight=False, soft_wrap=True)
        self._printed = time.monotonic()

    def trial_started(self, number: int, values: Mapping[str, Any], config: SweepConfig) -> None:
        """Remembers the trial; its first evaluation prints a line."""
        self._rows[number] = _Row(values, config.training.max_steps, objective=config.search.objective)

    def measured(self, measurement: Measurement) -> None:
        """Prints a line if the metrics have an eval loss, or what trials are ranked by."""
        row = self._rows[measurement.number]
        row.loss = measurement.metrics.get("loss", row.loss)
        self._clock.at(measurement.number, measurement.step)
        # The log of a trial that another worker resumes is read again from its start.
        score = row.objective.score(measurement.metrics)
        if ("eval_loss" in measurement.metrics or score is not None) and measurement.step > row.step:
            row.step = measurement.step
            parts = [f"loss {format_loss(row.loss)}"]
            if "eval_loss" in measurement.metrics:
                parts.append(f"eval loss {format_loss(measurement.metrics['eval_loss'])}")
            if score is not None and row.objective.metric != EVAL_LOSS:
                parts.append(f"{row.objective.name} {row.objective.text(score)}")
            self.note(f"{self._name(measurement.number)}: step {measurement.step}/{row.max_steps}, {', '.join(parts)}")

    def trial_finished(self, number: int, status: str, reason: str) -> None:
        """Prints a line with the status, the reason, and the time left."""
        self._clock.ended(number, self._rows[number].max_steps)
        self._done += 1
        because = f" ({reason})" if reason else ""
        self.note(
            f"{self._name(number)}: {status}{because}; {self._done} of {self._total} done, {self._clock.left()} left"
        )

    def waited(self) -> None:
        """Prints a line with the progress if the last line is half a minute old."""
        if time.monotonic() - self._printed >= _SILENT:
            self.note(self._clock.progress())

    def trial_interrupted(self, number: int) -> None:
        """Prints a line."""
        self.note(f"{self._name(number)}: interrupted")

    def _name(self, number: int) -> str:
        values = " ".join(
            f"{key.rsplit('.', 1)[-1]}={format_value(value)}" for key, value in self._rows[number].values.items()
        )
        return f"trial {number} {values}"


class NotebookScreen(LiveScreen):
    """The live table and the notes as one output of a Jupyter cell, which stays.

    Args:
        show: Shows HTML in place of what it has shown before.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(Console(file=io.StringIO(), record=True, width=120, force_jupyter=False, markup=False))
        self._show = show
        self._notes: list[str] = []
        self._shown = ""

    @contextlib.contextmanager
    def running(self, trials: int, done: int, steps: int) -> Iterator[None]:
        """Shows the table and the progress bar from now on."""
        self._begin(trials, done, steps)
        try:
            yield
        finally:
            self.waited()

    def note(self, text: str) -> None:
        """Shows a line above the table."""
        self._notes.append(text)
        self.waited()

    def waited(self) -> None:
        """Shows what is new."""
        for note in self._notes:
            self._console.print(note, highlight=False)
        if self._rows:
            self._console.print(self._draw())
        text = self._console.export_html(inline_styles=True, code_format="<pre style='line-height:1.3'>{code}</pre>")
        if text != self._shown:
            self._shown = text
            self._show(text)


def open_screen(console: Console) -> Screen:
    """A live screen if the console is a terminal, else a plain one."""
    return LiveScreen(console) if console.is_terminal else PlainScreen(console)


def screen_of_caller(*, quiet: bool) -> Screen:
    """The screen for a program that runs a sweep: in Jupyter the cell's output, else the terminal or plain lines.

    Args:
        quiet: Shows nothing.
    """
    console = Console(markup=False, quiet=quiet)
    if quiet or not console.is_jupyter:
        return PlainScreen(console) if quiet else open_screen(console)
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    return NotebookScreen(lambda text: handle.update(HTML(text)))
