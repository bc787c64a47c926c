"""Helpers of all benchmarks: date, hardware and versions; results files; tables."""

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def about(*packages: str) -> dict[str, Any]:
    """Returns the date, hardware and package versions.

    With torch also the CPU and which of its instructions torch uses, the threads, OMP_WAIT_POLICY, and the load.
    """
    known: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()}-core CPU",
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }
    if "torch" in packages:
        import torch

        if torch.cuda.is_available():
            known["hardware"] = torch.cuda.get_device_name()
        # torch.__version__ names a CPU build; the package's version does not always.
        known["versions"]["torch"] = str(torch.__version__)
        known |= {
            "cpu": _cpu(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
            "load": round(os.getloadavg()[0], 2),
        }
    return known


def _cpu() -> str:
    """The CPU's name, where Linux tells it."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def save(path: Path, known: Mapping[str, Any], **lists: Sequence[Mapping[str, Any]]) -> None:
    """Writes a JSON file that is easy to read in a diff: one line per fact, and one per entry of each list."""
    parts = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in known.items()]
    for name, entries in lists.items():
        body = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
        parts.append(f"  {json.dumps(name)}: [\n{body}\n  ]")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a Markdown table; the first column is left-aligned, the others right-aligned."""
    cells = [list(header), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(cells[0]), rule, *[line(row) for row in cells[1:]]])
