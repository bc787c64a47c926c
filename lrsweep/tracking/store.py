"""Where runs are kept: what a tracking URI means, whether a server answers, how processes share a SQLite file."""

import contextlib
import http.client
import os
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

# What MLflow reads from the environment, while a `session` is open. No retries inside MLflow: there they block for
# minutes, and they would repeat a create whose answer was lost; the tracker itself repeats what failed.
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
# Seconds for a server to say that it is there.
_PROBE_TIMEOUT = 1.5


def default_uri(folder: Path | None = None) -> str:
    """The store of a working folder (None: the current one): its mlflow.db, which a bare `mlflow ui` finds."""
    return f"sqlite:///{(folder or Path()).resolve() / 'mlflow.db'}"


class Store:
    """A database or an MLflow server.

    Args:
        uri: MLflow's tracking URI.
        folder: What a relative SQLite path is relative to.

    Attributes:
        uri: The URI for MLflow; a server's has no password in it.
        shown: The URI for people and logs, without any password.
        file: The database of a SQLite store; None for all others.

    Raises:
        InputError: The URI is not a store's.
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
            or (self.is_server and not urlsplit(uri).hostname)
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
        self.uri, self._login = _apart_from_login(uri) if self.is_server else (uri, {})

    def connect(self) -> Any:
        """MLflow's client for the store, which is reached and, if new, created. Raises StorageError if it does not answer."""
        with self.session(), self.faults():
            if not self.answers():
                raise StorageError(
                    f"tracking.uri={self.shown}: no MLflow server answers there; start it or set tracking=none"
                )
            self._ask_database()
            with self.exclusive():
                client = self._client()
                # MLflow reaches the store, and migrates an empty database, at the first question.
                client.search_experiments(max_results=1)
            return client

    def _ask_database(self) -> None:
        """One query to a database that exists: MLflow would repeat it for two minutes, and lock a file before that."""
        if self.is_server or (self.file is not None and not self.file.exists()):
            return
        engine = sqlalchemy.create_engine(self.uri, poolclass=sqlalchemy.pool.NullPool)
        try:
            sqlalchemy.inspect(engine).get_table_names()
        finally:
            engine.dispose()

    def _client(self) -> Any:
        with warnings.catch_warnings():
            # MLflow's models use what SQLAlchemy has deprecated; that is between those two.
            warnings.simplefilter("ignore")
            from mlflow.tracking import MlflowClient

            return MlflowClient(tracking_uri=self.uri)

    def answers(self) -> bool:
        """Whether the server is up; one that asks for a login or a certificate is. True for a database, unasked."""
        if not self.is_server:
            return True
        try:
            with urllib.request.urlopen(f"{self.uri.rstrip('/')}/health", timeout=_PROBE_TIMEOUT):
                return True
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code < 500
        except urllib.error.URLError as fault:
            return isinstance(fault.reason, ssl.SSLError)
        except (OSError, http.client.HTTPException):
            return False

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Sets the environment that MLflow reads: its options and the server's login. On leaving, all is as before.

        Everything that MLflow does for this store has to happen inside.
        """
        wanted = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ} | self._login
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Waits until no other process creates something in a SQLite store; a server keeps its clients apart itself."""
        if self.file is None:
            yield
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(self.file.with_name(f".{self.file.name}.lock")):
            yield

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """Turns whatever a store, its driver or the network raises into one line."""
        try:
            yield
        except LrsweepError:
            raise
        except Exception as fault:
            raise StorageError(f"tracking.uri={self.shown}: {self._redactor.mask(one_line(fault))}") from fault


def one_line(fault: Exception) -> str:
    """A fault's message on one line of at most 300 characters, without passwords."""
    text = mask(" ".join(str(fault).split())) or type(fault).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def _apart_from_login(uri: str) -> tuple[str, dict[str, str]]:
    """A server's URI without its user and password, and those as MLflow reads them: it prints the URI in its errors."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri, {}
    login = {
        "MLFLOW_TRACKING_USERNAME": unquote(parts.username or ""),
        "MLFLOW_TRACKING_PASSWORD": unquote(parts.password),
    }
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])), login
