"""Where a study is kept: the sweep's SQLite file, or a database that workers on many machines share."""

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

# Seconds to wait for a SQLite file that somebody else has locked.
PATIENCE = 60.0
# MariaDB knows no wait without end: a day is one.
_SERVERS = {"postgresql": "SELECT pg_advisory_lock(:key)", "mysql": "SELECT GET_LOCK(:key, 86400)"}
# What a URL without a driver means, whatever SQLAlchemy's version.
_DRIVERS = {"postgresql:": "postgresql+psycopg:"}


class _OneRead(optuna.storages._cached_storage._CachedStorage):
    """Optuna's own cache, which reads what others did to trials whenever it is asked.

    Between `hold` and `let_go` it does so once: an ask alone would read all running trials four times, while all wait for it.
    """

    def __init__(self, backend: optuna.storages.RDBStorage) -> None:
        super().__init__(backend)
        self._holds, self._has_read = False, False

    def hold(self) -> None:
        self._holds, self._has_read = True, False

    def let_go(self) -> None:
        self._holds = False

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        if not (self._holds and self._has_read):
            super()._read_trials_from_remote_storage(study_id)
            self._has_read = True


class Storage:
    """The storage of one sweep. Every use of it stands in `faults`; what has to be one transaction stands in `exclusive`."""

    def __init__(self, config: SweepConfig, folder: Path) -> None:
        self._file = None if config.search.storage else folder / "study.db"
        url = config.search.storage or f"sqlite:///{self._file}"
        self._redactor = Redactor.of_urls(url)
        self.url = next((new + url.removeprefix(old) for old, new in _DRIVERS.items() if url.startswith(old)), url)
        self._name = config.name
        # Fit to be shown: without the password.
        self.shown = self._redactor.mask(config.search.storage or str(self._file))
        self._kind = self.url.split(":", 1)[0].split("+", 1)[0]
        if self._kind == "sqlite" and self._file is None:
            self._file = Path(self.url.removeprefix("sqlite:///"))
        self._pools: list[sqlalchemy.Engine] = []
        self._opened: list[_OneRead] = []
        self._locks: sqlalchemy.Engine | None = None
        self._counting, self._inside = threading.Lock(), 0

    @property
    def on_server(self) -> bool:
        """Whether workers on other machines can reach it."""
        return self._file is None

    def exists(self) -> bool:
        """Whether there can be a study yet; asks no server."""
        return self._file is None or (self._file.exists() and self._file.stat().st_size > 0)

    def connect(self) -> Any:
        """Optuna's storage. Raises InputError for a URL that is none of a database, StorageError for another Optuna's."""
        try:
            return self._connected()
        except RuntimeError as newer:
            raise StorageError(f"{self.shown}: not usable as a study: {str(newer).splitlines()[0]}") from None

    def _connected(self) -> Any:
        if self._kind == "sqlite":
            return optuna.storages.RDBStorage(self.url, {"connect_args": {"timeout": PATIENCE}})
        if self._kind not in _SERVERS:
            raise InputError(
                f"search.storage={self.shown}: a study is kept in sqlite:///FILE, postgresql://... or mysql://..."
            )
        try:
            storage = optuna.storages.RDBStorage(self.url)
        except ImportError:
            raise InputError(
                f"search.storage={self.shown}: its driver is not installed; pip install 'lrsweep[postgresql]' has "
                "PostgreSQL's"
            ) from None
        self._pools.append(storage.engine)
        self._opened.append(_OneRead(storage))
        return self._opened[-1]

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """Turns the storage's own errors into one line.

        Nothing holds a connection beyond it: a server has room for some hundred, and a worker trains for minutes between.
        """
        with self._counting:
            self._inside += 1
        try:
            yield
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, UnboundLocalError) as fault:
            # Optuna's tell trips over a local variable when the database does not answer.
            if isinstance(fault, UnboundLocalError) and not isinstance(fault.__context__, Exception):
                raise
            log.exception("the study's storage failed")
            cause = fault.__context__ if isinstance(fault, UnboundLocalError) else fault
            text = self._redactor.mask((str(cause).splitlines() or [""])[0])
            raise StorageError(f"{self.shown}: not usable as a study: {text}") from None
        finally:
            with self._counting:
                self._inside -= 1
                # Another thread's connection would only lose its pool.
                if self._inside == 0:
                    for pool in self._pools:
                        pool.dispose()

    @contextlib.contextmanager
    def read_once(self) -> Iterator[None]:
        """In here, what others do to trials is read once, at the first question."""
        for storage in self._opened:
            storage.hold()
        try:
            yield
        finally:
            for storage in self._opened:
                storage.let_go()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """No other process is in here at the same time; the lock goes with the process, or its connection."""
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
                raise StorageError(f"{self.shown}: gives no lock ({answer}), and without one workers share trials")
            yield
