"""An MLflow store: its tracking URI, whether its server responds, and how processes share a SQLite file."""

import contextlib
import http.client
import os
import sqlite3
import ssl
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import sqlalchemy

from lrsweep.errors import InputError, LrsweepError, StorageError
from lrsweep.files.locks import exclusive
from lrsweep.files.redaction import Redactor, mask
from lrsweep.libraries import environment

# MLflow's options, set in the environment while a `session` is open. MLflow's own retries are off: they block for
# minutes, and could create a run twice if a response is lost. The tracker itself repeats what failed.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SERVERS = ("http", "https")
# Seconds in which a server must respond to a probe, and in which a SQLite file must be free to write to.
_PROBE_TIMEOUT = 1.5
_LOCK_TIMEOUT = 5.0


def default_uri(folder: Path | None = None) -> str:
    """Returns the URI of a working folder's store, mlflow.db, which a plain `mlflow ui` in that folder finds too.

    Args:
        folder: The working folder; None is the current one.
    """
    return f"sqlite:///{(folder or Path()).resolve() / 'mlflow.db'}"


class Store:
    """A database or an MLflow server.

    Args:
        uri: MLflow's tracking URI.
        folder: The folder that a relative SQLite path is relative to.

    Attributes:
        uri: The URI for MLflow. A server's has no user and password in it.
        shown: The URI for people and logs, with its password masked.
        file: The database file of a SQLite store; None for others.
        is_server: Whether the store is an MLflow server.

    Raises:
        InputError: The URI is not that of a store.
    """

    def __init__(self, uri: str, folder: Path) -> None:
        redactor = Redactor.of_urls(uri)
        self._redactor = redactor
        scheme = uri.split(":", 1)[0].split("+", 1)[0]
        self.is_server = scheme in _SERVERS
        self.file: Path | None = None
        path = uri.removeprefix("sqlite:///")
        if (
            scheme not in _DATABASES + _SERVERS
            or not _is_url(uri, self.is_server)
            or (scheme == "sqlite" and path in (uri, "", ":memory:"))
        ):
            raise InputError(
                f"tracking.uri={redactor.mask(uri)}: "
                "a store is sqlite:///FILE, postgresql://..., mysql://..., mssql://... or http(s)://HOST:PORT"
            )
        if scheme == "sqlite":
            self.file = folder.resolve() / path
            uri = f"sqlite:///{self.file}"
        self.shown = redactor.mask(uri)
        self.uri, self._login = _split_login(uri) if self.is_server else (uri, {})

    def connect(self) -> Any:
        """Connects to the store and returns MLflow's client for it. A new database is created.

        Raises:
            StorageError: The store does not respond.
        """
        with self.session(), self.faults():
            if not self.responds():
                raise StorageError(
                    f"tracking.uri={self.shown}: no MLflow server answers there; start it or set tracking=none"
                )
            self._ask_database()
            with self.exclusive():
                client = self._client()
                # MLflow connects to the store, and migrates an empty database, with its first query.
                client.search_experiments(max_results=1)
            return client

    def _ask_database(self) -> None:
        """Queries an existing database once. MLflow would retry for two minutes, and lock a file before that."""
        if self.is_server or (self.file is not None and not self.file.exists()):
            return
        engine = sqlalchemy.create_engine(self.uri, poolclass=sqlalchemy.pool.NullPool)
        try:
            sqlalchemy.inspect(engine).get_table_names()
        finally:
            engine.dispose()

    def import_client(self) -> None:
        """Imports what `connect` needs of MLflow, and does not connect."""
        with self.session(), self.faults(), _no_warnings():
            import mlflow.tracking

            if not self.is_server:
                import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    def _client(self) -> Any:
        with _no_warnings():
            from mlflow.tracking import MlflowClient

            return MlflowClient(tracking_uri=self.uri)

    def responds(self) -> bool:
        """Returns whether the server is up, even if it requires a login or a certificate. A database counts as up."""
        if not self.is_server:
            return True
        try:
            health = f"{self.uri.rstrip('/')}/health"
            with urllib.request.urlopen(health, timeout=_PROBE_TIMEOUT):  # noqa: S310 - http or https, see __init__
                return True
        except urllib.error.HTTPError as response:
            with response:
                return response.code < 500
        except urllib.error.URLError as fault:
            return isinstance(fault.reason, ssl.SSLError)
        except (OSError, http.client.HTTPException):
            return False

    def probe(self) -> None:
        """Returns if the store can be written to. If it is down, MLflow itself would wait for minutes.

        Raises:
            OSError: The server does not respond, or the database file is gone.
            sqlite3.Error: The database file is locked by another program, or broken.
        """
        if not self.responds():
            raise ConnectionError("no response from /health")
        if self.file is None:
            return
        if not self.file.exists():
            raise FileNotFoundError(f"{self.file}: no such file")
        with contextlib.closing(sqlite3.connect(self.file, timeout=_LOCK_TIMEOUT)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """A context in which the environment holds MLflow's options and the server's login.

        All calls of MLflow for this store must be inside. On exit the environment is restored.
        """
        unset = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
        with environment(unset | self._login):
            yield

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """A context in which no other process creates anything in a SQLite store. Servers do this themselves."""
        if self.file is None:
            yield
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(self.file.with_name(f".{self.file.name}.lock")):
            yield

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """A context that turns any exception of the store, its driver or the network into a one-line StorageError."""
        try:
            yield
        except LrsweepError:
            raise
        except Exception as fault:
            raise StorageError(f"tracking.uri={self.shown}: {self._redactor.mask(one_line(fault))}") from fault


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """A context without warnings: MLflow uses what SQLAlchemy deprecated, which lrsweep's users cannot change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_url(uri: str, is_server: bool) -> bool:
    """Whether the URI has a host, if it is a server's, and a port that is one."""
    try:
        parts: Any = urlsplit(uri) if is_server else sqlalchemy.make_url(uri)
        port_fits = parts.port is None or 0 < parts.port < 65536
        return port_fits and (not is_server or bool(parts.hostname))
    except (ValueError, sqlalchemy.exc.SQLAlchemyError):
        return False


def one_line(fault: Exception) -> str:
    """Returns an exception's message on one line of at most 300 characters, with passwords masked."""
    text = mask(" ".join(str(fault).split())) or type(fault).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def _split_login(uri: str) -> tuple[str, dict[str, str]]:
    """Splits a server's URI, which MLflow prints in errors, into one without a login and the login for MLflow."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri, {}
    login = {
        "MLFLOW_TRACKING_USERNAME": unquote(parts.username or ""),
        "MLFLOW_TRACKING_PASSWORD": unquote(parts.password),
    }
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])), login
