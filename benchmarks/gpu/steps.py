"""Steps with time limits in a child process, which is replaced if it dies or hangs.

The child appends to a file of events, one JSON object a line; the parent reads it:

    {"begin": name, "limit": seconds}
    {"end": name, "ok": true, false or null, ...}    what was found; null is no verdict
"""

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Found = dict[str, Any]
_POLL = 0.1
# What a child may take until its first step.
_IMPORT_SECONDS = 120.0


@dataclass(frozen=True)
class Step:
    """One check or measurement.

    Attributes:
        name: Its name, unique in its part.
        limit: The seconds after which it is killed.
        run: Returns what was found; `ok` is its verdict.
        guess: The seconds that it probably takes: it is not begun if less are left.
    """

    name: str
    limit: float
    run: Callable[[], Found]
    guess: float = 0.0


# The child


def arguments_of_child() -> argparse.Namespace:
    """The arguments that `supervise` gives: `events`, `until` (monotonic seconds) and `smoke`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("events", type=Path)
    parser.add_argument("--until", type=float, required=True)
    parser.add_argument("--smoke", action="store_true")
    return parser.parse_args()


def run_steps(steps: Sequence[Step], arguments: argparse.Namespace) -> None:
    """Runs the steps that have no event yet, while time is left.

    Args:
        steps: The steps.
        arguments: What `arguments_of_child` returned.
    """
    events: Path = arguments.events
    # Tiny shapes are for machines that may be slow and busy.
    patience = 10 if arguments.smoke else 1
    # A child that has no use for torch need not import it.
    torch = sys.modules.get("torch")
    begun = {event["begin"] for event in read_events(events) if "begin" in event}
    for step in steps:
        if step.name in begun:
            continue
        if time.monotonic() + step.guess > arguments.until:
            append(events, {"begin": step.name, "limit": 0})
            append(events, {"end": step.name, "ok": None, "skipped": "no time was left"})
            continue
        append(events, {"begin": step.name, "limit": step.limit * patience})
        start, lost = time.monotonic(), False
        try:
            found = step.run()
        except Exception as fault:  # what is broken is a result; what follows is still wanted
            traceback.print_exc()
            first_line = (str(fault).strip().splitlines() or [""])[0]
            found = {"ok": False, "failed": f"{type(fault).__name__}: {first_line[:300]}"}
            lost = type(fault).__name__ == "AcceleratorError"
        append(events, {"end": step.name, "ok": None, **found, "seconds": round(time.monotonic() - start, 1)})
        if lost:
            raise SystemExit(70)  # the device does nothing more for this process
        # Only here is an exception gone, and with it the frames that hold a model.
        gc.collect()
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


# The parent


def supervise(
    command: Sequence[str], events: Path, until: float, env: Mapping[str, str], *, smoke: bool = False
) -> Iterator[Found]:
    """Runs a part in child processes to its end; yields its `end` events as they come.

    Args:
        command: The part's command.
        events: The file of its events; what it prints goes to a log beside it.
        until: When the part has to end, in monotonic seconds.
        env: The child's environment.
        smoke: Whether shapes are tiny.
    """
    events.parent.mkdir(parents=True, exist_ok=True)
    events.unlink(missing_ok=True)
    arguments = [*command, str(events), "--until", str(until), *["--smoke"] * smoke]
    told = 0
    with open(events.with_suffix(".log"), "w", encoding="utf-8") as log:
        while True:
            before = told
            child = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True)
            watch, over = _Watch(child, events, until), False
            while not over:
                time.sleep(_POLL)
                over = watch.over
                ended = [event for event in read_events(events) if "end" in event]
                yield from ended[told:]
                told = len(ended)
            if watch.reason and told == before:
                # It has not come to any step; another one would not either.
                yield {"end": "the process", "ok": False, "failed": f"{watch.reason}; see {log.name}"}
                return
            if not watch.reason or time.monotonic() > until:
                return


class _Watch:
    """A child and the step that it is at. It is killed when the time of the step, or of all, is up."""

    def __init__(self, child: "subprocess.Popen[bytes]", events: Path, until: float) -> None:
        self._child, self._events, self._until = child, events, until
        self._step, self._since = "", time.monotonic()
        # Why it did not come to its end.
        self.reason = ""

    @property
    def over(self) -> bool:
        """Whether it has ended; a step that it was at then has its event."""
        code = self._child.poll()
        events = read_events(self._events)
        importing: Found = {"begin": "", "limit": _IMPORT_SECONDS}
        step = events[-1] if events and "begin" in events[-1] else importing
        if step["begin"] != self._step:
            self._step, self._since = step["begin"], time.monotonic()
        if code is None:
            if time.monotonic() > self._until:
                self.reason = "cut off: no time was left"
            elif time.monotonic() - self._since > step["limit"]:
                self.reason = f"killed after its limit of {step['limit']:g} s"
            else:
                return False
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        elif code:
            self.reason = "died: " + (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
        if self.reason and step["begin"]:
            verdict = None if self.reason.startswith("cut off") else False
            append(self._events, {"end": step["begin"], "ok": verdict, "failed": self.reason})
        return True


def append(events: Path, event: Mapping[str, Any]) -> None:
    """Writes one event."""
    with open(events, "a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


def read_events(events: Path) -> list[Found]:
    """All whole events of a file."""
    text = events.read_text(encoding="utf-8") if events.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
