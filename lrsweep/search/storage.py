"""The storage of a study: the sweep's SQLite file, or a database that workers on several machines share."""

import contextlib
import logging
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError, StorageError
from lrsweep.files.atomic import disk_faults
from lrsweep.files.locks import exclusive
from lrsweep.files.redaction import Redactor

log = logging.getLogger(__name__)

# Seconds to wait for a SQLite file that another process has locked.
PATIENCE = 60.0
# The statement that takes a lock. MariaDB cannot wait forever, so it waits for a day.
_SERVERS = {"postgresql": "SELECT pg_advisory_lock(:key)", "mysql": "SELECT GET_LOCK(:key, 86400)"}
_CHOICES = "sqlite:///FILE, postgresql://..., mysql://..."
# The driver of URLs that name none: SQLAlchemy's default depends on its version.
_DRIVERS = {"postgresql:": "postgresql+psycopg:"}


class _ReadOnceStorage(optuna.storages._cached_storage._CachedStorage):
    """Optuna's cached storage, which reads other workers' changes on every access.

    Between `hold` and `release` it reads them once: a single `ask` would read all running trials four times, while the
    other workers wait.
    """

    def __init__(self, backend: optuna.storages.RDBStorage) -> None:
        super().__init__(backend)
        self._held, self._has_read = False, False

    def hold(self) -> None:
        """Reads other workers' changes once from here on, at the next access."""
        self._held, self._has_read = True, False

    def release(self) -> None:
        """Reads other workers' changes on every access again."""
        self._held = False

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        if not (self._held and self._has_read):
            super()._read_trials_from_remote_storage(study_id)
            self._has_read = True


class Storage:
    """The storage of one sweep. Every access is inside `faults`; a transaction is also inside `exclusive`.

    Args:
        config: The sweep's config.
        folder: The sweep's folder.

    Attributes:
        url: SQLAlchemy's URL, with the password.
        shown: The URL or file as messages show it, without the password.
    """

    def __init__(self, config: SweepConfig, folder: Path) -> None:
        self._file = None if config.search.storage else folder / "study.db"
        url = config.search.storage or f"sqlite:///{self._file}"
        self._redactor = Redactor.of_urls(url)
        self.url = next((new + url.removeprefix(old) for old, new in _DRIVERS.items() if url.startswith(old)), url)
        self._name = config.name
        self.shown = self._redactor.mask(config.search.storage or str(self._file))
        self._kind = self.url.split(":", 1)[0].split("+", 1)[0]
        if self._kind == "sqlite" and self._file is None:
            self._file = Path(self.url.removeprefix("sqlite:///"))
        self._check_url()
        self._pools: list[sqlalchemy.Engine] = []
        self._opened: list[_ReadOnceStorage] = []
        self._locks: sqlalchemy.Engine | None = None
        # How many `with faults()` blocks are open, in all threads.
        self._counting, self._inside = threading.Lock(), 0

    def _check_url(self) -> None:
        """Raises InputError for a URL that SQLAlchemy could not use, or a SQLite database in memory."""
        try:
            url = sqlalchemy.make_url(self.url)
        except (SQLAlchemyError, ValueError):
            raise InputError(f"search.storage={self.shown}: no such database (choices: {_CHOICES})") from None
        if url.port is not None and not 0 < url.port < 65536:
            raise InputError(f"search.storage={self.shown}: a port is a number from 1 to 65535")
        if self._kind == "sqlite" and url.database in (None, "", ":memory:"):
            raise InputError(
                f"search.storage={self.shown}: a database in memory, which workers cannot share; name a file: "
                "sqlite:///FILE"
            )

    @property
    def on_server(self) -> bool:
        """Whether workers on other machines can reach the study."""
        return self._file is None

    def exists(self) -> bool:
        """Returns whether a study may exist. Does not connect to a server."""
        return self._file is None or (self._file.exists() and self._file.stat().st_size > 0)

    def connect(self) -> Any:
        """Optuna's storage.

        Raises:
            InputError: The URL is not one of a supported database, or its driver is not installed.
            StorageError: Another version of Optuna made the database.
        """
        try:
            return self._connected()
        except RuntimeError as fault:
            raise StorageError(f"{self.shown}: not usable as a study: {str(fault).splitlines()[0]}") from None

    def _connected(self) -> Any:
        if self._kind == "sqlite":
            return self._read_once(optuna.storages.RDBStorage(self.url, {"connect_args": {"timeout": PATIENCE}}))
        if self._kind not in _SERVERS:
            raise InputError(f"search.storage={self.shown}: no such database (choices: {_CHOICES})")
        try:
            storage = optuna.storages.RDBStorage(self.url)
        except ImportError:
            raise InputError(
                f"search.storage={self.shown}: its driver is not installed; for PostgreSQL: "
                "pip install 'lrsweep[postgresql]'"
            ) from None
        self._pools.append(storage.engine)
        return self._read_once(storage)

    def _read_once(self, storage: optuna.storages.RDBStorage) -> _ReadOnceStorage:
        self._opened.append(_ReadOnceStorage(storage))
        return self._opened[-1]

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """Turns the storage's own errors into one line.

        It also closes the connections at its end: a server allows about a hundred, and a worker trains for minutes
        between two accesses.

        Raises:
            StorageError: The storage failed.
        """
        with self._counting:
            self._inside += 1
        try:
            yield
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, UnboundLocalError) as fault:
            # If the database does not answer, Optuna's `tell` raises UnboundLocalError for a variable of its own.
            if isinstance(fault, UnboundLocalError) and not isinstance(fault.__context__, Exception):
                raise
            log.exception("the study's storage failed")
            cause = fault.__context__ if isinstance(fault, UnboundLocalError) else fault
            text = self._redactor.mask((str(cause).splitlines() or [""])[0])
            raise StorageError(f"{self.shown}: not usable as a study: {text}") from None
        finally:
            with self._counting:
                self._inside -= 1
                # Disposing of a pool closes idle connections only, so wait until no thread uses one.
                if self._inside == 0:
                    for pool in self._pools:
                        pool.dispose()

    @contextlib.contextmanager
    def read_once(self) -> Iterator[None]:
        """Reads other workers' changes once in this block, at the first access."""
        for storage in self._opened:
            storage.hold()
        try:
            yield
        finally:
            for storage in self._opened:
                storage.release()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps other processes out of this block. The lock ends with the process, or with its connection.

        Raises:
            StorageError: The database or the disk refuses the lock.
        """
        if self._file is not None:
            path = self._file.with_name(f".{self._file.name}.lock")
            with contextlib.ExitStack() as held:
                with disk_faults(path):
                    held.enter_context(exclusive(path))
                yield
            return
        key = f"lrsweep {self._name}"
        number = zlib.crc32(key.encode())
        if self._locks is None:
            self._locks = sqlalchemy.create_engine(self.url, poolclass=sqlalchemy.pool.NullPool)
        with self._locks.connect() as connection:
            answer = connection.execute(
                sqlalchemy.text(_SERVERS[self._kind]), {"key": number if self._kind == "postgresql" else key[:64]}
            ).scalar()
            if self._kind == "mysql" and answer != 1:
                raise StorageError(
                    f"{self.shown}: refused a lock ({answer}), and without it two workers could train the same trial"
                )
            yield
