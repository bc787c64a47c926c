"""Where the files of a sweep are: `outputs/NAME` and what is in it."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from lrsweep.errors import InputError, StorageError
from lrsweep.files.atomic import disk_faults, write_text
from lrsweep.files.locks import exclusive_or_none
from lrsweep.files.symlinks import refuse_symlinks

OUTPUTS = Path("outputs")
# A sweep's name is the name of its folder.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
# A trial's last checkpoint, the one before it, and the one being written.
CHECKPOINTS = ("checkpoint", "checkpoint.previous", "checkpoint.new")


class SweepFolder:
    """`outputs/NAME`: the paths of one sweep. Nothing is created until `create`."""

    def __init__(self, name: str) -> None:
        self.path = OUTPUTS / name
        self.study = self.path / "study.db"
        self.config = self.path / "config.yaml"
        self.best = self.path / "best"
        self.report = self.path / "report.html"
        self.summary = self.path / "summary.json"
        self.log = self.path / "lrsweep.log"

    def trial(self, number: int) -> Path:
        """A trial's own folder."""
        return self.path / "trials" / f"{number:04d}"

    def conclude(self, trials: int) -> None:
        """Marks the sweep as done with `trials` trials: report, best config and tracking are complete."""
        write_text(self.path / ".concluded", f"{trials}\n")

    def concluded(self, trials: int) -> bool:
        """Whether the sweep was marked as done with that many trials."""
        mark = self.path / ".concluded"
        return mark.is_file() and mark.read_text() == f"{trials}\n"

    def create(self) -> None:
        """Makes the folder. Raises StorageError if the disk refuses."""
        with disk_faults(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the sweep for this process. Raises StorageError if another process has it."""
        with disk_faults(self.path), exclusive_or_none(self.path / ".lock") as mine:
            if not mine:
                raise StorageError(f"{self.path}: another process is running this sweep; wait for it, or stop it")
            yield


def existing_sweep(name: str) -> SweepFolder:
    """The folder of a finished or running sweep.

    Raises:
        InputError: There is no such sweep (the message lists those there are), or its folder contains a symlink.
    """
    folder = SweepFolder(name)
    if not re.fullmatch(NAME, name) or not folder.config.is_file():
        there = sorted(path.parent.name for path in OUTPUTS.glob("*/config.yaml"))
        raise InputError(f"{name}: no such sweep in {OUTPUTS}/ (choices: {', '.join(there) or 'none yet'})")
    refuse_symlinks(folder.path)
    return folder


def remove_checkpoints(trial_folder: Path) -> None:
    """Removes a trial's checkpoints, which it no longer needs once it has ended."""
    for name in CHECKPOINTS:
        shutil.rmtree(trial_folder / name, ignore_errors=True)
