"""Locks between processes, and asking about them."""

import fcntl
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

from lrsweep.files.locks import exclusive, exclusive_or_none, is_locked

HOLD = """
import sys
from pathlib import Path
from lrsweep.files.locks import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_seen_until_its_process_ends_however_that_is(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path), "there is no such file"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert is_locked(path)
    with exclusive_or_none(path) as mine:
        assert not mine
    holder.kill()
    holder.communicate()
    assert not is_locked(path)
    with exclusive_or_none(path) as mine:
        assert mine


def test_two_that_ask_at_once_do_not_see_each_other(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with open(path, "rb") as other:
        # What another process does while it asks.
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert not is_locked(path)


def _add_many(folder: str) -> None:
    for _ in range(100):
        with exclusive(Path(folder) / "lock"):
            counter = Path(folder) / "counter"
            value = int(counter.read_text())
            time.sleep(0.0001)
            counter.write_text(str(value + 1))


def test_nobody_else_is_inside(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    processes = [multiprocessing.get_context("spawn").Process(target=_add_many, args=(str(tmp_path),)) for _ in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "counter").read_text() == "200"
