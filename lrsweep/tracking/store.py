"""Where runs are kept: what a tracking uri means, whether a server answers, how processes share a SQLite file."""

import contextlib
import fcntl
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

from lrsweep import masking
from lrsweep.errors import InputError, LrsweepError, StorageError
from lrsweep.outputs import mask_url

# Set before mlflow is first imported. No retries inside MLflow: there they block for minutes, and they would repeat a
# create whose answer was lost; the tracker repeats what failed itself.
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
    """The store of a working folder (None: the current one): its mlflow.db, which a bare `mlflow ui` finds there."""
    return f"sqlite:///{(folder or Path()).resolve() / 'mlflow.db'}"


class Store:
    """A database or an MLflow server. `uri` carries no password of a server's, `shown` none at all.

    `file` is the database of a SQLite store, None for all others.
    """

    def __init__(self, uri: str, folder: Path) -> None:
        """Resolves a relative SQLite path against `folder`. Raises InputError for what is no store."""
        masking.learn(uri)
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
                f"tracking.uri={mask_url(uri)}: "
                "a store is sqlite:///FILE, postgresql://..., mysql://..., mssql://... or http(s)://HOST:PORT"
            )
        if scheme == "sqlite":
            self.file = folder.resolve() / path
            uri = f"sqlite:///{self.file}"
        self.shown = mask_url(uri)
        self.uri = _without_password(uri) if self.is_server else uri

    def connect(self) -> Any:
        """MLflow's client for the store, which is reached and, if new, created. Raises StorageError if it does not answer."""
        with self.faults():
            if not self.answers():
                raise StorageError(
                    f"tracking.uri={self.shown}: no MLflow server answers there; start it or set tracking=none"
                )
            self._probe()
            with self.alone():
                client = self._client()
                # MLflow reaches the store, and migrates an empty database, at the first question.
                client.search_experiments(max_results=1)
            return client

    def _probe(self) -> None:
        """One question to a database that is there: MLflow repeats it for two minutes, and locks a file before it."""
        if self.is_server or (self.file is not None and not self.file.exists()):
            return
        engine = sqlalchemy.create_engine(self.uri, poolclass=sqlalchemy.pool.NullPool)
        try:
            sqlalchemy.inspect(engine).get_table_names()
        finally:
            engine.dispose()

    def _client(self) -> Any:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        with warnings.catch_warnings():
            # MLflow's models use what SQLAlchemy has deprecated; that is between those two.
            warnings.simplefilter("ignore")
            from mlflow.tracking import MlflowClient

            return MlflowClient(tracking_uri=self.uri)

    def answers(self) -> bool:
        """Whether the server is there and in order; one that wants a login or a certificate is. No database is asked."""
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
    def alone(self) -> Iterator[None]:
        """Waits until no other process creates something in a SQLite store; a server keeps its clients apart itself.

        The kernel lets go of the lock however the process ends.
        """
        if self.file is None:
            yield
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file.with_name(f".{self.file.name}.lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """Makes one line of whatever a store, its driver or the way to it raises."""
        try:
            yield
        except LrsweepError:
            raise
        except Exception as fault:
            raise StorageError(f"tracking.uri={self.shown}: {one_line(fault)}") from fault


def one_line(fault: Exception) -> str:
    """What a fault says, without passwords and at a bearable length."""
    text = mask_url(" ".join(str(fault).split())) or type(fault).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def _without_password(uri: str) -> str:
    """A server's uri with its user and password moved to where MLflow looks for them: it prints the uri in its errors."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
