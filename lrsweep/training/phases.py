"""What a worker does while no trial has anything to show, such as loading the model.

Phases are log records, so that they need no place in the interfaces of engines: they are in lrsweep.log, and executors
on this machine show those that take long.
"""

import logging

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)

# The trials show what they do.
NONE = ""


def phase(doing: str) -> None:
    """Says what the worker does from now on.

    Args:
        doing: In a few words, such as `loading the model`; `NONE` once trials train.
    """
    log.info(doing)
