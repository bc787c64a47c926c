"""A write that fails, at each of a sweep's first writes: `python benchmarks/full_disk.py`, half an hour.

A light sweep of three trials (what it measures is made up; the files are real) runs once with every write and fsync below
outputs/ counted, then once for each of the first 200 with that one failing: disk full from there on (ENOSPC), or one I/O
error (EIO). Each must end with exit 4 and one line that names the path, or be whole; and the same command, with the disk in
order again, must finish with every trial complete once and the same best.
"""

import argparse
import errno
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from common import RESULTS, about, save, table

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.faults import disk

KINDS = {"disk full from there on": (errno.ENOSPC, False), "one I/O error": (errno.EIO, True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--writes", type=int, default=200, help="the first so many")
    parser.add_argument("--every", type=int, default=1, help="only each so manieth")
    parser.add_argument("--out", type=Path, default=RESULTS / "full_disk.json")
    arguments = parser.parse_args()
    parent = Path(tempfile.mkdtemp(prefix="full-disk-"))
    library = disk.shim(parent)
    (parent / "whole").mkdir()
    writes = disk.run(parent / "whole", library).writes
    print(f"{writes} writes and fsyncs in an undisturbed run")
    found = []
    for kind, (error, once) in KINDS.items():
        codes: Counter[int] = Counter()
        tried = range(1, min(arguments.writes, writes) + 1, arguments.every)
        for at in tried:
            folder = parent / f"{error}-{at}"
            folder.mkdir()
            hurt = disk.run(folder, library, at, error, once=once)
            disk.check_hurt(hurt)
            codes[hurt.code] += 1
            whole = disk.run(folder, library)
            assert whole.code == 0, (folder, whole)
            summary = json.loads((folder / "outputs" / "disk" / "summary.json").read_text())
            ends = [(trial["number"], trial["status"]) for trial in summary["trials"]]
            assert ends == [(0, "complete"), (1, "complete"), (2, "complete")], (folder, ends)
            assert summary["best"]["values"] == {"optimizer.lr": 1e-3}, folder
        found.append({"kind": kind, "tried": len(tried), "exit_4": codes[4], "exit_0": codes[0]})
        print(found[-1], flush=True)
    save(arguments.out, about("optuna") | {"writes": writes}, found=found)
    print(
        table(
            ["write that fails", "tried", "exit 4", "exit 0", "resumed whole"],
            [[f["kind"], f["tried"], f["exit_4"], f["exit_0"], f["tried"]] for f in found],
        )
    )


if __name__ == "__main__":
    main()
