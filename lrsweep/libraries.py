"""The libraries that lrsweep stands on: their versions, and how they behave in processes that are lrsweep's own."""

import importlib.metadata
import logging
import os

# Told by `lrsweep doctor`, and kept as tags of every run.
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
    """Progress bars off, telemetry off, log records kept from the terminal, and torch's threads told how to wait.

    For the command line and worker processes, before the libraries are imported. It changes the process's environment, so
    a program that only uses lrsweep does not call it.
    """
    settings = [
        # How long torch's waiting threads spin. As long as by default, on a shared machine, they take the cores from each
        # other and a trial of 4 s takes minutes; not at all, a quiet machine is up to four times slower on small layers.
        ("GOMP_SPINCOUNT", "3000"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"),
        ("TRANSFORMERS_VERBOSITY", "warning"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ]
    if "OMP_WAIT_POLICY" in os.environ:
        del settings[0]  # the user has said how threads wait
    for name, value in settings:
        os.environ.setdefault(name, value)
    # A log that cannot be written (the disk is full) is no news for the terminal.
    logging.raiseExceptions = False
    # Without a handler of its own, Python would print warnings to stderr.
    logging.getLogger().addHandler(logging.NullHandler())
