"""The libraries that lrsweep uses: their versions, and their settings in lrsweep's own processes."""

import contextlib
import importlib.metadata
import logging
import os
from collections.abc import Iterator, Mapping

# Shown by `lrsweep doctor`, and stored as tags of every run.
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "optuna",
    "hydra-core",
    "mlflow",
    "bitsandbytes",
)


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def quiet() -> None:
    """Turns off progress bars and telemetry, keeps logs off the terminal, and limits how long torch's threads spin.

    For the command line and worker processes, before the libraries are imported. It changes the process's environment,
    so a program that uses lrsweep as a library should not call it.
    """
    settings = [
        # How long torch's idle threads spin. With the default, threads on a shared machine take the cores from each
        # other, and a trial of 4 s takes minutes. Without spinning, small layers are up to four times slower.
        ("GOMP_SPINCOUNT", "3000"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"),
        ("TRANSFORMERS_VERBOSITY", "warning"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ]
    if "OMP_WAIT_POLICY" in os.environ:
        del settings[0]  # the user has set how threads wait
    for name, value in settings:
        os.environ.setdefault(name, value)
    # If a log cannot be written (the disk is full), the terminal does not need a traceback for it.
    logging.raiseExceptions = False
    # Without a handler, Python would print warnings to stderr.
    logging.getLogger().addHandler(logging.NullHandler())


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """A context in which environment variables have these values. On exit each gets its earlier value back."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
