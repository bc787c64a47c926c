"""Writing checkpoints while training goes on."""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from lrsweep.errors import StorageError
from lrsweep.files import checkpoint
from lrsweep.files.checkpoint import Checkpoint


class CheckpointWriter:
    """Writes checkpoints one after another in a thread of its own.

    A checkpoint that is still waiting gives way to a newer one of the same trial. The error of a write is raised by the
    next call that meets it.

    Attributes:
        seconds: How long the last write took.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "lrsweep-checkpoints")
        self._writes: list[tuple[Path, Future[None]]] = []
        self.seconds = 0.0

    def write(self, trial_folder: Path, kept: Checkpoint) -> None:
        """Writes a checkpoint soon.

        Args:
            trial_folder: The trial's folder.
            kept: The checkpoint. Its tensors must not change any more.

        Raises:
            StorageError: An earlier write failed.
        """
        self._cancel(trial_folder)
        done = [write for _, write in self._writes if write.done()]
        self._writes = [(folder, write) for folder, write in self._writes if not write.done()]
        self._writes.append((trial_folder, self._thread.submit(self._write, trial_folder, kept)))
        for write in done:
            write.result()

    def wait(self, trial_folder: Path | None = None) -> None:
        """Waits until a trial's checkpoints are on disk, or those of all trials.

        Raises:
            StorageError: A write failed.
        """
        awaited = [write for folder, write in self._writes if trial_folder in (None, folder)]
        self._writes = [(folder, write) for folder, write in self._writes if trial_folder not in (None, folder)]
        for write in awaited:
            write.result()

    def drop(self, trial_folder: Path) -> None:
        """Cancels a trial's checkpoint that is waiting, and waits for one that is being written.

        Raises:
            StorageError: That write failed.
        """
        self._cancel(trial_folder)
        self.wait(trial_folder)

    @contextlib.contextmanager
    def all_written(self) -> Iterator[None]:
        """Waits for all writes at the end of the block. An error of the block is raised rather than one of theirs."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(StorageError):
                self.wait()
            raise
        self.wait()

    def _cancel(self, trial_folder: Path) -> None:
        self._writes = [
            (folder, write) for folder, write in self._writes if folder != trial_folder or not write.cancel()
        ]

    def _write(self, trial_folder: Path, kept: Checkpoint) -> None:
        start = time.monotonic()
        checkpoint.save(trial_folder, kept)
        self.seconds = time.monotonic() - start
