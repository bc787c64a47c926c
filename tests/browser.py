"""For the tests: MLflow's server as a process, and a headless Chromium to look at it with."""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

# Nothing of the browser's own goes out to the network.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str | None:
    """The browser's path, or None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


BROWSER = chromium()
# For tests that look at the shared sweep in it.
ON_THE_SHARED_SWEEP = [
    pytest.mark.skipif(BROWSER is None, reason="needs a Chromium in the PATH"),
    pytest.mark.xdist_group("finished_sweep"),
]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class MlflowServer:
    """`lrsweep ui` in a folder: UI and API. It can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder

    def start(self) -> None:
        """Returns when it answers."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lrsweep", "ui", "--port", str(self.port)],
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.1)
        raise AssertionError("MLflow's server does not answer after a minute")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> str:
        """Ctrl-C; returns what the server printed in its life."""
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=60)[0]

    def kill(self) -> None:
        """SIGKILL to the server and all its children."""
        with contextlib.suppress(psutil.NoSuchProcess):
            this = psutil.Process(self.process.pid)
            for process in [*this.children(recursive=True), this]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.communicate(timeout=60)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[MlflowServer]:
    """A running server on the folder's mlflow.db, killed at the end."""
    server = MlflowServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def browser_page(executable: str) -> Iterator["Page"]:
    """A page of a fresh browser, wide enough for MLflow's tables; its errors fail the test."""
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        try:
            page = browser.new_page(viewport={"width": 1600, "height": 1000})
            # On a busy machine a page may take long to fill.
            page.set_default_timeout(60_000)
            expect.set_options(timeout=60_000)
            yield page
        finally:
            browser.close()
