"""`lrsweep diagnose FILE ...`: diagnoses loss curves, and advises what to change."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrsweep.cli.arguments import ArgumentParser
from lrsweep.errors import InputError, LrsweepError
from lrsweep.files.redaction import mask
from lrsweep.formatting import printable

if TYPE_CHECKING:
    from lrsweep.analysis.diagnosis import Diagnosis
    from lrsweep.analysis.log_groups import Group
    from lrsweep.analysis.log_readers import Log


def run(argv: Sequence[str]) -> int:
    """Prints a diagnosis for each run, and a table for each sweep. Raises LrsweepError if nothing can be read."""
    parser = ArgumentParser("diagnose", "diagnose loss curves, and advise what to change")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="a training log (trainer_state.json, *.jsonl, console output, CSV, TensorBoard events), a folder with "
        "logs, or the id of an MLflow run in MLFLOW_TRACKING_URI or this folder's store",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("--plot", action="store_true", help="write a plot of each curve next to its file, as FILE.png")
    arguments = parser.parse_args(argv)
    from lrsweep.analysis.diagnosis import diagnose
    from lrsweep.analysis.log_groups import distinct, groups, other_runs

    logs, faults = _read(list(dict.fromkeys(arguments.files)))
    if not logs:
        raise faults[0]
    for fault in faults:
        print(printable(mask(f"lrsweep: {fault}")), file=sys.stderr)
    runs = distinct(logs)
    judged = [log for log, _ in runs]
    found = [diagnose(log.curve, other_runs(log, judged)) for log in judged]
    if arguments.json:
        print(json.dumps([_entry(log, same, one) for (log, same), one in zip(runs, found, strict=True)], indent=1))
    else:
        for (log, same), diagnosis in zip(runs, found, strict=True):
            _print(log, same, diagnosis)
        labels = {id(log): one.label for log, one in zip(judged, found, strict=True)}
        for group in groups(judged):
            _print_group(group, labels)
    if arguments.plot:
        from lrsweep.report.curve import plot_curve

        for log, diagnosis in zip(judged, found, strict=True):
            plot_curve(log.source, log.curve, diagnosis, _plot_file(log))
    return 2 if faults else 0


def _read(sources: Iterable[str]) -> tuple[list["Log"], list[LrsweepError]]:
    """Reads all logs that can be read; what a folder holds beside its logs is no fault."""
    from lrsweep.analysis.log_readers import read_logs
    from lrsweep.analysis.log_readers.sources import logs_in

    logs: list[Log] = []
    faults: list[LrsweepError] = []
    seen: set[str] = set()

    def collect(source: str) -> None:
        if (place := os.path.realpath(source)) in seen:
            return
        seen.add(place)
        try:
            logs.extend(read_logs(source, _mlflow_run))
        except LrsweepError as fault:
            faults.append(fault)

    for source in sources:
        if not os.path.isdir(source):  # Path.is_dir raises for a name that is too long
            collect(source)
            continue
        before, earlier = len(logs), len(faults)
        try:
            for path in logs_in(Path(source)):
                collect(path)
        except InputError as fault:
            faults.append(fault)
        if len(logs) > before:
            faults[earlier:] = [fault for fault in faults[earlier:] if "holds no losses" not in str(fault)]
    return logs, faults


def _mlflow_run(run_id: str) -> Iterable[Mapping[str, Any]]:
    from lrsweep.tracking.history import run_history

    return run_history(run_id)


def _entry(log: "Log", same: Sequence["Log"], diagnosis: "Diagnosis") -> dict[str, Any]:
    entry = {"file": log.source} | asdict(diagnosis)
    entry["advice"] = [
        {"text": advice.text, "overrides": _overrides(log, advice.overrides)} for advice in diagnosis.advice
    ]
    return entry | {"judged": log.curve.summary(), "same_run": [other.source for other in same]}


def _overrides(log: "Log", overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    from lrsweep.analysis.diagnosis.remedies import in_training_arguments

    return overrides if log.of_lrsweep else in_training_arguments(overrides)


def _plot_file(log: "Log") -> Path:
    """Next to its file; a run in a table of several may be called anything."""
    file, _, run = log.source.rpartition(": ")
    return Path(f"{file}.{run.replace('/', '_')}.png" if file else f"{run}.png")


def _say(line: str) -> None:
    """Prints a line; names of files and what logs hold are others' text."""
    print(printable(line))


def _print(log: "Log", same: Sequence["Log"], diagnosis: "Diagnosis") -> None:
    _say(f"{log.source}: {diagnosis.label}: {diagnosis.evidence['reason']}")
    for advice in diagnosis.advice:
        overrides = " ".join(f"{key}={json.dumps(value)}" for key, value in _overrides(log, advice.overrides).items())
        _say(f"    {advice.text}{f': {overrides}' if overrides else ''}")
    _say(f"    judged: {log.curve.summary()}")
    if same:
        _say(f"    the same run: {', '.join(other.source for other in same)}")


def _print_group(group: "Group", labels: Mapping[int, str]) -> None:
    from lrsweep.formatting import format_loss, format_value

    head = [*group.differing[0], f"final {group.series}", "curve", "file"]
    rows = [
        [
            *("" if value is None else format_value(value) for value in differing.values()),
            format_loss(final) if final != float("inf") else "-",
            labels[id(log)],
            log.source,
        ]
        for log, final, differing in zip(group.logs, group.finals, group.differing, strict=True)
    ]
    sizes = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    _say(f"\n{len(rows)} runs of one sweep, best first:")
    for row in [head, *rows]:
        _say("    " + "  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip())
