"""A PostgreSQL of one's own, on loopback, with its files in a temporary folder; Debian's, where it is installed."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna

USER = "lrsweep"


def programs() -> Path | None:
    """The folder of initdb and postgres, or None."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


@contextlib.contextmanager
def server(*options: str) -> Iterator[str]:
    """Runs a server with these options (`max_connections=50`); gives the URL of an empty database in it."""
    folder = programs()
    assert folder is not None
    # It refuses to run as root.
    person: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    place = Path(tempfile.mkdtemp(prefix="lrsweep-postgres-"))
    if person:
        shutil.chown(place, person["user"], person["group"])
    password = secrets.token_hex(8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        (place / "password").write_text(password)
        (place / "password").chmod(0o644)
        initdb = [folder / "initdb", "-D", place / "data", "-U", USER, "-E", "UTF8", "--locale=C", "--no-sync"]
        _run([*map(str, initdb), "--auth=scram-sha-256", f"--pwfile={place / 'password'}"], person)
        settings = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", *options]
        with (place / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(folder / "postgres"), "-D", str(place / "data"), *(f"-c{setting}" for setting in settings)],
                cwd="/",
                stdout=log,
                stderr=log,
                **person,
            )
        try:
            url = f"postgresql://{USER}:{password}@127.0.0.1:{port}/postgres"
            _wait_for(url, process, place / "log")
            yield url
        finally:
            process.send_signal(signal.SIGINT)  # its word for: do not wait for clients
            process.wait(30)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def empty(url: str) -> None:
    """Makes the database empty again."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop schema public cascade")
        connection.execute("create schema public")


def trials(url: str, study: str) -> list[optuna.trial.FrozenTrial]:
    """What Optuna has of a study there."""
    storage = optuna.storages.RDBStorage(url.replace("://", "+psycopg://"))
    try:
        return optuna.load_study(study_name=study, storage=storage).get_trials()
    finally:
        storage.engine.dispose()


def _run(command: Sequence[str], person: dict[str, Any]) -> None:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **person)
    assert done.returncode == 0, done.stderr


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    import psycopg

    until = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        else:
            return
