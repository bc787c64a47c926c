"""Makes each of a sweep's first writes fail in turn: `python benchmarks/full_disk.py`, half an hour.

A light sweep of three trials (invented measurements, real files) runs once to count every write and fsync below
outputs/. Then it runs once for each of the first 200, and that one fails: the disk is full from then on (ENOSPC), or
there is one I/O error (EIO). Each run must end with exit code 4 and one line that names the path, or succeed. The same
command must then, with a working disk, finish with every trial complete exactly once and the same best trial.
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
    parser.add_argument("--writes", type=int, default=200, help="how many of the first writes fail")
    parser.add_argument("--every", type=int, default=1, help="use every n-th of these writes only")
    parser.add_argument("--out", type=Path, default=RESULTS / "full_disk.json")
    arguments = parser.parse_args()
    parent = Path(tempfile.mkdtemp(prefix="full-disk-"))
    library = disk.shim(parent)
    (parent / "no-fault").mkdir()
    writes = disk.run(parent / "no-fault", library).writes
    print(f"{writes} writes and fsyncs in a run without faults")
    found = []
    for kind, (error, once) in KINDS.items():
        codes: Counter[int] = Counter()
        tried = range(1, min(arguments.writes, writes) + 1, arguments.every)
        for at in tried:
            folder = parent / f"{error}-{at}"
            folder.mkdir()
            faulty = disk.run(folder, library, at, error, once=once)
            disk.check_hurt(faulty)
            codes[faulty.code] += 1
            resumed = disk.run(folder, library)
            assert resumed.code == 0, (folder, resumed)
            summary = json.loads((folder / "outputs" / "disk" / "summary.json").read_text())
            ends = [(trial["number"], trial["status"]) for trial in summary["trials"]]
            assert ends == [(0, "complete"), (1, "complete"), (2, "complete")], (folder, ends)
            assert summary["best"]["values"] == {"optimizer.lr": 1e-3}, folder
        found.append({"kind": kind, "tried": len(tried), "exit_4": codes[4], "exit_0": codes[0]})
        print(found[-1], flush=True)
    save(arguments.out, about("optuna") | {"writes": writes}, found=found)
    print(
        table(
            ["failing write", "tried", "exit 4", "exit 0", "resumed and complete"],
            [[f["kind"], f["tried"], f["exit_4"], f["exit_0"], f["tried"]] for f in found],
        )
    )


if __name__ == "__main__":
    main()
