"""The paths of a sweep's files: `outputs/NAME` and its content."""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lrsweep.errors import InputError, StorageError
from lrsweep.files.atomic import disk_faults, write_text
from lrsweep.files.locks import exclusive_or_none
from lrsweep.files.symlinks import refuse_symlinks

OUTPUTS = Path("outputs")
# The pattern of a sweep's name, which is also its folder's name.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
# A trial's last checkpoint, the one before it, and the one being written.
CHECKPOINTS = ("checkpoint", "checkpoint.previous", "checkpoint.new")


def expanded(text: str) -> Path:
    """A user's path with `~` expanded; one of a user that is not there stays as it is, and names nothing."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


class SweepFolder:
    """`outputs/NAME`: the paths of one sweep. Nothing is created until `create`.

    Args:
        name: The sweep's name.

    Attributes:
        path: The folder.
        study: The SQLite study, unless `search.storage` names another database.
        config: The sweep's config, with secrets masked.
        best: The folder of the best config, in every dialect, and its adapter.
        report: The report.
        summary: The summary.
        log: The log file.
    """

    def __init__(self, name: str) -> None:
        self.path = OUTPUTS / name
        self.study = self.path / "study.db"
        self.config = self.path / "config.yaml"
        self.best = self.path / "best"
        self.report = self.path / "report.html"
        self.summary = self.path / "summary.json"
        self.log = self.path / "lrsweep.log"

    def trial(self, number: int) -> Path:
        """The folder of a trial."""
        return self.path / "trials" / f"{number:04d}"

    def conclude(self, trials: int) -> None:
        """Marks the sweep as complete with `trials` trials: its report, best config and tracking are written."""
        write_text(self.path / ".concluded", f"{trials}\n")

    def concluded(self, trials: int) -> bool:
        """Returns whether the sweep was marked as complete with this many trials."""
        mark = self.path / ".concluded"
        return mark.is_file() and mark.read_text() == f"{trials}\n"

    def check_writable(self) -> None:
        """Raises StorageError if files cannot be written where the folder is, or will be. Leaves nothing."""
        there = next(path for path in (self.path, *self.path.absolute().parents) if path.is_dir())
        with disk_faults(there.absolute()), tempfile.TemporaryFile(dir=there):
            pass

    def create(self) -> None:
        """Creates the folder. Raises StorageError if the disk fails."""
        with disk_faults(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the sweep for this process. Raises StorageError if another process runs it."""
        with disk_faults(self.path), exclusive_or_none(self.path / ".lock") as locked:
            if not locked:
                raise StorageError(f"{self.path}: another process is running this sweep; wait for it, or stop it")
            yield


def existing_sweep(name: str) -> SweepFolder:
    """The folder of a finished or running sweep.

    Args:
        name: The sweep's name, or the path of its folder, such as `outputs/lora_lr/`.

    Raises:
        InputError: There is no such sweep (the message lists the existing ones), or its folder contains a symlink.
    """
    path = Path(name)
    # The name of a sweep here, so that messages are as short as they are for the name.
    here = path.parent == OUTPUTS or path.parent == OUTPUTS.resolve()
    folder = SweepFolder(path.name if here else str(path.absolute()) if path.parent.name else name)
    if not re.fullmatch(NAME, path.name) or not folder.config.is_file():
        there = existing_names()
        raise InputError(f"{name}: no such sweep in {OUTPUTS}/ (choices: {', '.join(there) or 'none yet'})")
    refuse_symlinks(folder.path)
    return folder


def existing_names() -> list[str]:
    """The names of the sweeps in this working folder, sorted."""
    return sorted(path.parent.name for path in OUTPUTS.glob("[!.]*/config.yaml"))


def remove_checkpoints(trial_folder: Path) -> None:
    """Removes the checkpoints of a trial that has ended."""
    for name in CHECKPOINTS:
        shutil.rmtree(trial_folder / name, ignore_errors=True)
