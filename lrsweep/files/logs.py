"""The sweep's log file, for warnings, tracebacks and the libraries' log records."""

import contextlib
import logging
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from lrsweep.errors import LimitError, LrsweepError, UnexpectedError
from lrsweep.files.atomic import disk_faults
from lrsweep.files.paths import SweepFolder
from lrsweep.files.redaction import Redactor, mask
from lrsweep.files.system_limits import limit_reached

log = logging.getLogger(__name__)

# Characters of an error's first line that are shown.
_LONGEST = 300


@contextlib.contextmanager
def logging_to(folder: SweepFolder, redactor: Redactor) -> Iterator[None]:
    """Sends warnings and log records to lrsweep.log instead of the terminal, with secrets masked.

    Args:
        folder: The sweep's folder.
        redactor: Masks the secrets.

    Raises:
        StorageError: The log file cannot be opened.
        LimitError: The system allows the block no more processes, files or memory.
        UnexpectedError: The block raised an error that no code expected; its traceback is in the log.
    """
    with disk_faults(folder.log):
        handler = logging.FileHandler(folder.log)
    handler.setFormatter(_RedactingFormatter(redactor))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    except LrsweepError:
        raise
    except Exception as fault:
        limit = limit_reached(fault)
        log.exception(limit or "no code expected this error")
        if limit is not None:
            raise LimitError(f"sweep {folder.path.name}: {limit}; then run the same command to resume") from fault
        text = redactor.mask(traceback_of(fault))
        raise UnexpectedError(redactor.mask(_line(fault, f"sweep {folder.path.name}", folder.log)), text) from fault
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()


def unexpected(fault: Exception, doing: str) -> LrsweepError:
    """An error that no code expected as one line; its traceback goes to a new file in the temporary folder.

    If the system allows no more processes, files or memory, the line says so, and there is nothing to report.

    Args:
        fault: The error.
        doing: What was being done.
    """
    limit = limit_reached(fault)
    if limit is not None:
        return LimitError(mask(f"{doing}: {limit}"))
    text = mask(traceback_of(fault))
    return UnexpectedError(mask(_line(fault, doing, _saved(text))), text)


@contextlib.contextmanager
def stray_errors_kept() -> Iterator[None]:
    """Keeps the errors of threads and destructors, which Python would print, for the log or the temporary folder."""
    before = threading.excepthook, sys.unraisablehook
    threading.excepthook = lambda stray: _keep(stray.exc_value)
    sys.unraisablehook = lambda stray: _keep(stray.exc_value)
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = before


def _keep(fault: BaseException | None) -> None:
    if fault is None or isinstance(fault, SystemExit):
        return
    if logging.getLogger().handlers:
        log.error("an error in a thread or a destructor", exc_info=fault)
    else:
        _saved(mask(traceback_of(fault)))


def traceback_of(fault: BaseException) -> str:
    """An error's traceback as Python prints it."""
    return "".join(traceback.format_exception(fault))


def _line(fault: Exception, doing: str, kept: Path | None) -> str:
    first = (str(fault).strip().splitlines() or [""])[0][:_LONGEST]
    what = f"{type(fault).__name__}: {first}" if first else type(fault).__name__
    where = f"its traceback is in {kept}" if kept else "LRSWEEP_DEBUG=1 shows its traceback"
    return f"{doing}: {what}; no code expected this error, {where}: please report it"


def _saved(text: str) -> Path | None:
    """A new file in the temporary folder with the text; None if the folder cannot be written to."""
    try:
        handle, name = tempfile.mkstemp(prefix="lrsweep-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return None
    return Path(name)


class _RedactingFormatter(logging.Formatter):
    """Masks secrets in log records, including their tracebacks."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """The record as text, with secrets masked."""
        return self._redactor.mask(super().format(record))
