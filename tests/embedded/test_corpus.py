"""The diagnosis on the corpus of real runs with known labels; `benchmarks/diagnosis.py` prints the whole of it."""

import gzip
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from lrsweep.analysis.diagnosis import curve, diagnose

CORPUS = Path(__file__).parents[2] / "benchmarks" / "corpus" / "curves.jsonl.gz"


@pytest.fixture(scope="module")
def entries() -> list[dict[str, Any]]:
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_the_corpus_is_large_and_its_halves_share_no_setting(entries: list[dict[str, Any]]) -> None:
    labels = Counter(entry["label"] for entry in entries if entry["label"])
    assert sum(labels.values()) >= 200
    assert min(labels.values()) >= 12, labels
    halves = {half: {entry["group"] for entry in entries if entry["half"] == half} for half in ("tuning", "held out")}
    assert not halves["tuning"] & halves["held out"]
    assert len(halves["held out"]) > 20


def test_held_out_curves_are_told_right_inside_their_sweep(entries: list[dict[str, Any]]) -> None:
    groups = defaultdict(list)
    for entry in entries:
        if entry["half"] == "held out":
            groups[entry["group"]].append((entry["label"], curve(entry["rows"], entry["weight_decay"])))
    told = [
        (label, diagnose(found, [other for _, other in group if other is not found]).label)
        for group in groups.values()
        for label, found in group
        if label
    ]
    right = sum(label == said for label, said in told)
    assert right >= 0.9 * len(told), Counter(pair for pair in told if pair[0] != pair[1])
