"""The sweep's log file, for warnings, tracebacks and the libraries' log records."""

import contextlib
import logging
from collections.abc import Iterator

from lrsweep.files.atomic import disk_faults
from lrsweep.files.paths import SweepFolder
from lrsweep.files.redaction import Redactor


@contextlib.contextmanager
def logging_to(folder: SweepFolder, redactor: Redactor) -> Iterator[None]:
    """Sends warnings and log records to lrsweep.log instead of the terminal, with secrets masked.

    Args:
        folder: The sweep's folder.
        redactor: Masks the secrets.

    Raises:
        StorageError: The log file cannot be opened.
    """
    with disk_faults(folder.log):
        handler = logging.FileHandler(folder.log)
    handler.setFormatter(_RedactingFormatter(redactor))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()


class _RedactingFormatter(logging.Formatter):
    """Masks secrets in log records, including their tracebacks."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """The record as text, with secrets masked."""
        return self._redactor.mask(super().format(record))
