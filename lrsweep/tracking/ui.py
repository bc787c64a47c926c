"""MLflow's UI: run on a store, and the way to the page that matters in it."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from lrsweep.errors import InputError
from lrsweep.tracking.store import ENVIRONMENT, Store


def ui_command(store: Store) -> str:
    """The shell command that opens the UI on a store."""
    if store.is_server:
        return shlex.join(["python", "-m", "webbrowser", store.shown])
    return shlex.join(["mlflow", "ui", "--backend-store-uri", store.shown, "--host", "127.0.0.1"])


def compare_url(server: str, experiment_id: str) -> str:
    """The chart page of an experiment. MLflow opens it on its GenAI side and with the trials folded away under their
    parent, where charts leave them out; sorted by a metric, it unfolds them.
    """
    page = f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs"
    return (
        f"{page}?workflowType=machine_learning&compareRunsMode=CHART&orderByKey=metrics.%60eval_loss%60&orderByAsc=true"
    )


def serve_ui(uri: str, port: int = 5000) -> int:
    """Runs the UI of a database store on 127.0.0.1 until a signal (0) or its own end (its exit code). For the main thread.

    Raises InputError for a store that has a UI already, or does not exist.
    """
    store = Store(uri, Path())
    if store.is_server:
        raise InputError(f"{store.shown}: this server has the UI itself; open it in a browser")
    if store.file and not store.file.is_file():
        raise InputError(f"{store.file}: no such store; run a sweep first, or name another store")
    # The uri goes through the environment: a password in the arguments is there for all users to see. One worker and no
    # job runner: this is a viewer for one person.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **ENVIRONMENT, **os.environ}
    environment["MLFLOW_BACKEND_STORE_URI"] = store.uri
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # In a session of its own: MLflow passes signals on to its workers, and one that gets Ctrl-C twice prints tracebacks.
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        server.send_signal(signal.SIGKILL if stopped else signal.SIGTERM)
        stopped = True

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        code = server.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return 0 if stopped else code
