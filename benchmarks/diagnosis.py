"""Measures how often the diagnosis is right: `python benchmarks/diagnosis.py`, a few seconds, no torch.

Diagnoses every labelled curve of the corpus (`corpus.py` makes it, `labels.py` defines the labels) twice: together with
the other runs of its setting, as in a sweep, and alone. The rules in `lrsweep/analysis/diagnosis` were tuned on one
half of the settings; the held-out half shows how well they generalise. `--tuning` uses the tuning half only and lists
every mistake, for work on the rules.
"""

import argparse
import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, about, save, table

from lrsweep.analysis.diagnosis import curve, diagnose

CORPUS = Path(__file__).parent / "corpus" / "curves.jsonl.gz"
ORDER = ("healthy", "too_low", "too_high", "oscillating", "overfitting", "over_regularised", "diverged", "inert")
Entry = dict[str, Any]


def read() -> list[Entry]:
    """Returns the corpus with its unlabelled runs: the other runs are compared with them."""
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def judged(entries: Sequence[Entry]) -> Iterator[tuple[Entry, str, str]]:
    """Yields each labelled entry with its diagnosis in its sweep and its diagnosis alone."""
    groups = defaultdict(list)
    for entry in entries:
        groups[entry["group"]].append((entry, curve(entry["rows"], entry["weight_decay"])))
    for group in groups.values():
        for entry, found in group:
            if entry["label"]:
                others = [other for _, other in group if other is not found]
                yield entry, diagnose(found, others).label, diagnose(found).label


def confusion(pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Returns for each true label: the curves, how many were right, and the labels that they got."""
    counts = Counter(pairs)
    rows = []
    for label in ORDER:
        called = {other: counts[label, other] for other in (*ORDER, "unknown") if counts[label, other]}
        total = sum(called.values())
        rows.append({"label": label, "curves": total, "right": called.get(label, 0), "called": called})
    return rows


def show(title: str, rows: Sequence[dict[str, Any]]) -> float:
    """Prints a confusion matrix; returns the accuracy."""
    right: int = sum(row["right"] for row in rows)
    total: int = sum(row["curves"] for row in rows)
    print(f"\n{title}: {right} of {total} right, {right / total:.1%}\n")
    names = (*ORDER, "unknown")
    print(
        table(
            ("true \\ diagnosed", *names),
            [(row["label"], *(row["called"].get(name, "") for name in names)) for row in rows],
        )
    )
    return right / total


def main() -> None:
    """Evaluates both halves, in the sweep and alone; with `--tuning` only one half, without a results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuning", action="store_true", help="only the tuning half, with its mistakes; writes no file")
    tuning_only = parser.parse_args().tuning
    entries = read()
    found = list(judged([entry for entry in entries if entry["half"] == "tuning" or not tuning_only]))
    accuracy, matrices = {}, {}
    for half in ("tuning",) if tuning_only else ("tuning", "held out"):
        for way in ("in its sweep", "alone"):
            pairs = [
                (entry["label"], in_sweep if way == "in its sweep" else alone)
                for entry, in_sweep, alone in found
                if entry["half"] == half
            ]
            matrices[f"{half}, {way}"] = confusion(pairs)
            accuracy[f"{half}, {way}"] = round(show(f"{half}, {way}", matrices[f"{half}, {way}"]), 4)
    if tuning_only:
        for entry, in_sweep, alone in found:
            if in_sweep != entry["label"]:
                diagnosed = f"diagnosed {in_sweep:16} alone {alone}"
                print(f"{entry['id']:24} lr {entry['lr']:<7.1g} {entry['label']:16} {diagnosed}")
        return
    known = about("numpy") | {
        "runs": len(entries),
        "labelled": len(found),
        "without_label": sum(not entry["label"] for entry in entries),
        "settings": len({entry["group"] for entry in entries}),
        "accuracy": accuracy,
    }
    save(
        RESULTS / "diagnosis.json",
        known,
        **{name.replace(", ", "_").replace(" ", "_"): rows for name, rows in matrices.items()},
    )


if __name__ == "__main__":
    main()
