"""Which executor runs a sweep's workers."""

from lrsweep.config import SweepConfig
from lrsweep.executors import Executor
from lrsweep.executors.inline import Inline
from lrsweep.executors.local import Local


def executor(config: SweepConfig) -> Executor:
    """The executor that `executor.name` asks for."""
    return Inline(config) if config.executor.name == "inline" else Local(config)
