"""MLflow's UI: serves it for a store, and makes links to it."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from lrsweep.errors import InputError
from lrsweep.tracking.store import ENVIRONMENT, Store


def ui_command(store: Store) -> str:
    """Returns the shell command that opens the UI of a store."""
    if store.is_server:
        return shlex.join(["python", "-m", "webbrowser", store.shown])
    return shlex.join(["mlflow", "ui", "--backend-store-uri", store.shown, "--host", "127.0.0.1"])


# MLflow's name for the key of a view.
_VIEW = "viewStateShareKey"


def runs_filter(sweep_id: str, number: int | None = None) -> str:
    """Returns MLflow's filter for trials.

    Args:
        sweep_id: The trials' sweep; empty for all sweeps.
        number: The number of one trial; None for all.
    """
    # Only trials have this tag. The sweep's own run would add a chart with one bar for each of its metrics.
    trials = "tags.trial LIKE '%'" if number is None else f"tags.trial = '{number}'"
    return trials + (f" AND tags.`lrsweep.sweep_id` = '{sweep_id}'" if sweep_id else "")


def compare_url(
    server: str, experiment_id: str, shown: str = "", metric: str = "eval_loss", *, lowest_first: bool = True
) -> str:
    """Returns the URL of an experiment's page with the charts that MLflow chooses.

    MLflow would open the GenAI view by default, and would collapse the trials under their parent, where charts leave
    them out. Sorting by a metric expands them.

    Args:
        server: The UI's address.
        experiment_id: MLflow's experiment id.
        shown: The filter of the runs; empty for all trials.
        metric: What to sort the runs by.
        lowest_first: Whether the lowest comes first, or the highest.
    """
    return (
        f"{_page(server, experiment_id)}&orderByKey={quote(f'metrics.`{metric}`')}"
        f"&orderByAsc={str(lowest_first).lower()}&searchFilter={quote(shown or runs_filter(''))}"
    )


def view_url(server: str, experiment_id: str, key: str) -> str:
    """Returns the URL of an experiment's page with the view that the experiment has under this key.

    MLflow ignores the view if the URL has a filter or an order too.
    """
    return f"{_page(server, experiment_id)}&{_VIEW}={key}"


def _page(server: str, experiment_id: str) -> str:
    page = f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs"
    return f"{page}?workflowType=machine_learning&compareRunsMode=CHART"


def trial_url(page: str, number: int) -> str:
    """Returns the URL of a trial's charts.

    Args:
        page: The URL of its sweep's page, made by `view_url` with the sweep's id as the key, or by `compare_url`.
        number: The trial's number.
    """
    found = re.fullmatch(rf"(.*)/#/experiments/(.*)/runs\?.*&{_VIEW}=(\w+)", page)
    if found:
        return compare_url(found[1], found[2], runs_filter(found[3], number))
    return page.replace(quote(runs_filter("")), quote(runs_filter("", number)))


def serve_ui(uri: str, port: int = 5000, links: Mapping[str, str] | None = None, *, browse: bool = False) -> int:
    """Serves the UI of a database store on 127.0.0.1 until a signal or its own end. Call it in the main thread.

    Args:
        uri: The store's tracking URI.
        port: The port to listen on.
        links: The pages to print, by sweep; the last one is opened.
        browse: Whether to open it in the browser.

    Returns:
        0 after a signal, else the server's exit code.

    Raises:
        InputError: The store is a server, which has its own UI, or does not exist.
    """
    store = Store(uri, Path())
    if store.is_server:
        raise InputError(f"{store.shown}: this server has its own UI; open it in a browser")
    if store.file and not store.file.is_file():
        raise InputError(f"{store.file}: no such store; run a sweep first, or name another store")
    # The URI is passed in the environment: all users could see a password in the arguments. One worker and no job
    # runner are enough for one person. A file of the working folder must not be imported, by its workers neither.
    environment = {"PYTHONSAFEPATH": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **ENVIRONMENT, **os.environ}
    environment["MLFLOW_BACKEND_STORE_URI"] = store.uri
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # The server has its own session: MLflow passes signals on to its workers, and a worker that gets Ctrl-C twice
    # prints tracebacks.
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    if links:
        longest = max(map(len, links))
        print("\n".join(f"{name:<{longest}}  {link}" for name, link in links.items()), flush=True)
    if links and browse:
        opener = threading.Thread(
            target=_open, args=(f"http://127.0.0.1:{port}", list(links.values())[-1]), daemon=True
        )
        opener.start()
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


def _open(server: str, link: str) -> None:
    """Opens a page in the browser as soon as the server answers, within a minute."""
    for _ in range(120):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{server}/health", timeout=2):  # noqa: S310
            webbrowser.open(link)
            return
        time.sleep(0.5)
