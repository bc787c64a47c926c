"""How the libraries behave in our processes, said before they are imported."""

import logging
import os


def quiet() -> None:
    """Progress bars off, telemetry off, chatter kept from the terminal (it goes to the sweep's log), threads that yield."""
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
        del settings[0]  # whoever says how threads wait is listened to
    for name, value in settings:
        os.environ.setdefault(name, value)
    # A log that cannot be written (the disk is full) is no news for the terminal.
    logging.raiseExceptions = False
    # Without a handler of its own, Python would print warnings to stderr.
    logging.getLogger().addHandler(logging.NullHandler())
