"""`lrsweep diagnose FILE ...`: diagnoses loss curves, and advises what to change."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lrsweep.cli.arguments import ArgumentParser


def run(argv: Sequence[str]) -> int:
    """Prints a diagnosis for each file. Raises LrsweepError."""
    parser = ArgumentParser("diagnose", "diagnose loss curves, and advise what to change")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="trainer_state.json, trainer_log.jsonl, metrics.jsonl, or the id of an MLflow run in this folder's store",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("--plot", action="store_true", help="write a plot of each curve next to its file, as FILE.png")
    arguments = parser.parse_args(argv)
    from lrsweep.analysis import log_readers
    from lrsweep.analysis.diagnosis import diagnose
    from lrsweep.tracking import run_history

    entries = []
    read = {file: log_readers.read(file, run_history) for file in arguments.files}
    for file, curve in read.items():
        diagnosis = diagnose(curve, [other for name, other in read.items() if _same_sweep(file, name)])
        entries.append({"file": file, **asdict(diagnosis)})
        if not arguments.json:
            print(f"{file}: {diagnosis.label}: {diagnosis.evidence['reason']}")
            for advice in diagnosis.advice:
                overrides = " ".join(f"{key}={json.dumps(value)}" for key, value in advice.overrides.items())
                print(f"    {advice.text}{f': {overrides}' if overrides else ''}")
        if arguments.plot:
            from lrsweep.report.curve import plot_curve

            plot_curve(file, curve, diagnosis, Path(f"{file}.png"))
    if arguments.json:
        print(json.dumps(entries, indent=1))
    return 0


def _same_sweep(file: str, other: str) -> bool:
    """Returns whether two files are logs of different trials of one sweep (outputs/NAME/trials/0007/metrics.jsonl)."""
    one, two = Path(file), Path(other)
    return one != two and one.parent.parent == two.parent.parent and one.parent.parent.name == "trials"
