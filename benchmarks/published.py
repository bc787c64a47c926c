"""Judges `lrsweep diagnose` on training logs that people published: `python benchmarks/published.py LOGS LABELS`.

LOGS is a folder of log files; LABELS is a JSONL file with a line for each: `file`, `repo` and `path` (its source),
`kind` (of training), `label` (by eye, from the plot, before any rule was written), `also` (labels that a fair engineer
could defend) and `diverged_or_worse` (a run that must never be called healthy). The data belong to others and are not
in this repository: the results name the sources.

A diagnosis is right if it is the label, defensible if it is one of `also`, else wrong. A log with no loss is
answered `unknown`. `--mistakes` lists what was wrong, for work on the rules, and writes no file.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, about, save, table

from lrsweep.analysis.diagnosis import Diagnosis, diagnose
from lrsweep.analysis.log_readers import read_logs
from lrsweep.errors import InputError

NO_FAULT = ("healthy", "unknown")
MARKS = ("right", "defensible", "wrong")
Entry = Mapping[str, Any]


def diagnosed(path: Path) -> Diagnosis:
    """The diagnosis of a file; of several runs in one, that of the first."""
    try:
        return diagnose(read_logs(str(path), lambda run_id: [])[0].curve)
    except InputError as fault:
        return Diagnosis("unknown", {"reason": str(fault)})


def labels(path: Path) -> list[Entry]:
    """The labelled logs of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def mark(entry: Entry, label: str) -> str:
    """Whether a diagnosis is right, defensible or wrong."""
    return "right" if label == entry["label"] else "defensible" if label in entry["also"] else "wrong"


def counted(pairs: Sequence[tuple[Entry, Diagnosis]], by: Callable[[Entry, Diagnosis], str]) -> list[dict[str, Any]]:
    """The marks of each group of logs, the largest group first."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for entry, found in pairs:
        groups[by(entry, found)][mark(entry, found.label)] += 1
    return [
        {"group": group, "logs": marks.total(), **{name: marks[name] for name in MARKS}}
        for group, marks in sorted(groups.items(), key=lambda one: -one[1].total())
    ]


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the marks of groups, with the share that is right, and right or defensible."""
    print(f"\n{title}\n")
    cells = [
        (
            row["group"],
            *(row[name] for name in ("logs", *MARKS)),
            f"{row['right'] / row['logs']:.0%}",
            f"{1 - row['wrong'] / row['logs']:.0%}",
        )
        for row in rows
    ]
    print(table(("", "logs", *MARKS, "right", "or defensible"), cells))


def main() -> None:
    """Diagnoses every labelled log and prints the tables; writes the results unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--mistakes", action="store_true", help="list what was wrong; writes no file")
    parser.add_argument("--second", type=Path, nargs="*", default=[], help="labels by another reader")
    parser.add_argument("--out", type=Path, default=RESULTS / "published.json")
    arguments = parser.parse_args()
    entries = labels(arguments.labels)
    # A log that was labelled twice has its last label.
    entries = list({entry["file"]: entry for entry in entries if (arguments.logs / entry["file"]).is_file()}.values())
    pairs = [(entry, diagnosed(arguments.logs / entry["file"])) for entry in entries]
    by_label = counted(pairs, lambda entry, found: found.label)
    by_truth = counted(pairs, lambda entry, found: str(entry["label"]))
    by_kind = counted(pairs, lambda entry, found: str(entry["kind"]))
    every = counted(pairs, lambda entry, found: "all")
    missed = [entry["file"] for entry, found in pairs if entry["diverged_or_worse"] and found.label == "healthy"]
    show("By the label that was given (its precision)", by_label)
    show("By the label that is true (its recall)", by_truth)
    show("By the kind of training", by_kind)
    show("All", every)
    accused = [row for row in by_label if row["group"] not in NO_FAULT]
    broken = sum(bool(entry["diverged_or_worse"]) for entry in entries)
    print(f"\nbroken runs called healthy: {len(missed)} of {broken}; accusations: {sum(r['logs'] for r in accused)}")
    if arguments.mistakes:
        for entry, found in pairs:
            if mark(entry, found.label) == "wrong":
                print(
                    f"\n{entry['file']} ({entry['kind']}): {entry['label']}, not {found.label}: {entry.get('why', '')}"
                )
                print(f"    {found.evidence['reason']}")
        return
    second = {entry["file"]: entry["label"] for path in arguments.second for entry in labels(path)}
    both = [entry for entry in entries if entry["file"] in second]
    agree = sum(second[entry["file"]] == entry["label"] for entry in both)
    if both:
        print(f"two readers agree in {agree} of {len(both)}")
    known = about("numpy") | {
        **({"read_twice": len(both), "readers_agree": agree} if both else {}),
        "logs": len(entries),
        "repositories": len({entry["repo"] for entry in entries}),
        "broken_runs": broken,
        "broken_runs_called_healthy": len(missed),
        "accusations": sum(row["logs"] for row in accused),
        "accusations_wrong": sum(row["wrong"] for row in accused),
        "sources": sorted({f"{entry['repo']}: {entry['path']}" for entry in entries}),
    }
    save(arguments.out, known, all=every, by_given=by_label, by_true=by_truth, by_kind=by_kind)


if __name__ == "__main__":
    main()
