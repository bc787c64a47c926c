"""The tables of a GPU check, and whether the targets are met."""

from collections.abc import Sequence
from typing import Any

from common import table

Entry = dict[str, Any]
SMALL, LARGE = "Qwen2.5-0.5B", "Llama-3.1-8B"


def gates(entries: Sequence[Entry]) -> int:
    """How many entries have a verdict."""
    return sum(entry["ok"] is not None for entry in entries)


def summary(entries: Sequence[Entry]) -> str:
    """All tables, as Markdown."""
    parts = [_correct(entries), _sweeps(entries), _speed(entries), "\n".join(targets(entries)), _kernels(entries)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _correct(entries: Sequence[Entry]) -> str:
    chosen = [entry for entry in entries if entry["part"] in ("correctness", "tests")]
    rows = []
    for entry in chosen:
        verdict = {True: "ok", False: "BROKEN", None: "not run"}[entry["ok"]]
        worst = f"{entry['worst']:.1e}" if "worst" in entry else ""
        found = entry.get("failed") or entry.get("skipped") or ""
        if not found and "passed" in entry:
            found = f"{entry['passed']} passed"
        rows.append([entry["name"], worst, entry.get("gate", ""), verdict, found[:60]])
    return table(["check", "worst", "gate", "", ""], rows) if rows else ""


def measured(entries: Sequence[Entry]) -> list[Entry]:
    """The cells that have a time."""
    return [entry for entry in entries if "ms_per_trial_step" in entry]


def _speed(entries: Sequence[Entry]) -> str:
    stock = _times(entries, "Trainer")
    rows = []
    cells = [entry for entry in entries if entry["part"] in ("speed", "compiled") and entry["name"] != "matmul peak"]
    for entry in sorted(cells, key=lambda entry: (entry.get("model") == LARGE, entry.get("batch", 0))):
        if "ms_per_trial_step" not in entry:
            rows.append([entry["name"], (entry.get("failed") or entry.get("skipped", ""))[:40], *[""] * 6])
            continue
        base = stock.get((entry["model"], entry["batch"]))
        rows.append(
            [
                entry["name"],
                f"{entry['ms_per_trial_step']:.2f}",
                f"{entry['tokens_per_second']:,}",
                f"{base / entry['ms_per_trial_step']:.2f}x" if base else "",
                f"{entry['peak_memory_gb']:.1f}",
                f"{entry['share_of_peak']:.1%}",
                f"{entry['share_of_peak_done']:.1%}",
                entry.get("trials_per_pass", ""),
            ]
        )
    header = ["", "ms/trial-step", "tokens/s", "over Trainer", "GB", "of peak, 4P", "of peak, done", "trials per pass"]
    return table(header, rows) if rows else ""


def _kernels(entries: Sequence[Entry]) -> str:
    parts = []
    for entry in entries:
        if "kernels" in entry:
            parts.append(
                f"{entry['name']}: {entry['ms']} ms a step; {entry['host_ms']} ms until the host has launched "
                f"{entry['launches']} kernels, {entry['device_ms']} ms in which one runs."
            )
            parts.append(table(["kernel", "ms", "launches"], entry["kernels"]))
    return "\n\n".join(parts)


def _times(entries: Sequence[Entry], arm: str) -> dict[tuple[str, int], float]:
    """The shortest time of an arm by model and batch."""
    found: dict[tuple[str, int], float] = {}
    for entry in measured(entries):
        if entry["arm"] == arm:
            place = (entry["model"], entry["batch"])
            found[place] = min(entry["ms_per_trial_step"], found.get(place, float("inf")))
    return found


def targets(entries: Sequence[Entry]) -> list[str]:
    """A line for each target whose cells have been measured."""
    packed, stock, tuned = (_times(entries, arm) for arm in ("packed", "Trainer", "tuned Trainer"))
    lines = []
    for name, place, base, least in (
        (f"over stock Trainer, {SMALL} B=1", (SMALL, 1), stock, 8.0),
        (f"over a tuned Trainer, {SMALL} B=1", (SMALL, 1), tuned, 4.0),
        (f"over stock Trainer, {LARGE} B=8, which has nothing to gain", (LARGE, 8), stock, 0.95),
    ):
        if place in packed and place in base:
            faster = base[place] / packed[place]
            lines.append(f"- {name}: {faster:.2f} times as fast; target {least:g}: {_met(faster >= least)}")
    shares = [
        (entry["share_of_peak_done"], entry["share_of_peak"])
        for entry in measured(entries)
        if (entry["model"], entry["batch"]) == (SMALL, 8) and entry["arm"].startswith("packed")
    ]
    if shares:
        done, whole = max(shares)
        lines.append(
            f"- share of the matmul peak, {SMALL} B=8: {done:.1%}, or {whole:.1%} if the output layer counts for all "
            f"tokens; target 50 %: {_met(done >= 0.5)}"
        )
    return lines


def _met(met: bool) -> str:
    return "met" if met else "NOT MET"


def _sweeps(entries: Sequence[Entry]) -> str:
    seconds = {entry["name"]: entry["wall_seconds"] for entry in entries if "wall_seconds" in entry}
    if len(seconds) < 2:
        return ""
    faster = seconds["trainer"] / seconds["packed"]
    return (
        f"A whole sweep with the command line: {seconds['packed']} s packed, {seconds['trainer']} s with the trainer "
        f"engine, {faster:.2f} times as fast."
    )
