"""How often the diagnosis is right: `python benchmarks/diagnosis.py`, a few seconds, no torch.

Judges every labelled curve of the corpus (`corpus.py`; `labels.py` says what the labels mean) twice: inside its sweep, with
the other runs of its setting as siblings, and alone. The rules in `lrsweep/curves` were tuned on one half of the settings;
the held-out half says how they do on others. `--tuning` stops there and lists every mistake, for work on the rules.
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
    """The corpus, unlabelled runs too: they are siblings of the others."""
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def judged(entries: Sequence[Entry]) -> Iterator[tuple[Entry, str, str]]:
    """Each labelled entry with its diagnosis inside its sweep and alone."""
    groups = defaultdict(list)
    for entry in entries:
        groups[entry["group"]].append((entry, curve(entry["rows"], entry["weight_decay"])))
    for group in groups.values():
        for entry, found in group:
            if entry["label"]:
                siblings = [other for _, other in group if other is not found]
                yield entry, diagnose(found, siblings).label, diagnose(found).label


def confusion(pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """For each true label: how many, what share was found, and what they were called."""
    counts = Counter(pairs)
    rows = []
    for label in ORDER:
        called = {other: counts[label, other] for other in (*ORDER, "unknown") if counts[label, other]}
        total = sum(called.values())
        rows.append({"label": label, "curves": total, "right": called.get(label, 0), "called": called})
    return rows


def show(title: str, rows: Sequence[dict[str, Any]]) -> float:
    """Prints a confusion matrix; returns the accuracy."""
    right, total = sum(row["right"] for row in rows), sum(row["curves"] for row in rows)
    print(f"\n{title}: {right} of {total} right, {right / total:.1%}\n")
    names = (*ORDER, "unknown")
    print(
        table(
            ("known \\ said", *names),
            [(row["label"], *(row["called"].get(name, "") for name in names)) for row in rows],
        )
    )
    return right / total


def main() -> None:
    """Both halves, both ways; with `--tuning` one half, its mistakes, and no results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tuning", action="store_true", help="the tuning half alone, with its mistakes; writes nothing"
    )
    tuning_only = parser.parse_args().tuning
    entries = read()
    found = list(judged([entry for entry in entries if entry["half"] == "tuning" or not tuning_only]))
    accuracy, matrices = {}, {}
    for half in ("tuning",) if tuning_only else ("tuning", "held out"):
        for way in ("in its sweep", "alone"):
            pairs = [
                (entry["label"], beside if way == "in its sweep" else by_itself)
                for entry, beside, by_itself in found
                if entry["half"] == half
            ]
            matrices[f"{half}, {way}"] = confusion(pairs)
            accuracy[f"{half}, {way}"] = round(show(f"{half}, {way}", matrices[f"{half}, {way}"]), 4)
    if tuning_only:
        for entry, beside, by_itself in found:
            if beside != entry["label"]:
                print(f"{entry['id']:24} lr {entry['lr']:<7.1g} {entry['label']:16} said {beside:16} alone {by_itself}")
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
