"""Builds the engine that trains a sweep's trials.

The engine `external` needs more than a config: see orchestration/preflight.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lrsweep.config.objective import EVAL_LOSS
from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError
from lrsweep.files.paths import SweepFolder
from lrsweep.training.engines import Engine


@dataclass(frozen=True)
class Workload:
    """What an engine will have to train.

    Attributes:
        config: The sweep's config.
        highest_rank: The highest LoRA rank among the trials.
        trials: How many of the trials are this worker's share.
    """

    config: SweepConfig
    highest_rank: int
    trials: int


def _trainer(workload: Workload) -> Engine:
    from lrsweep.training.engines.trainer import TrainerEngine

    return TrainerEngine()


def _packed(workload: Workload) -> Engine:
    from lrsweep.training.engines.pack_loader import check_packable
    from lrsweep.training.packing import Unpackable

    try:
        check_packable(workload.config)
    except Unpackable as reason:
        raise InputError(f"engine=packed: {reason}; use engine=trainer, or engine=auto to have it chosen") from None
    return _pack(workload, None)


def _auto(workload: Workload) -> Engine:
    return _pack(workload, lambda: _trainer(workload))  # most sweeps need no Trainer, and its import takes seconds


def _pack(workload: Workload, fallback: Callable[[], Engine] | None) -> Engine:
    from lrsweep.training.engines.packed import PackedEngine

    config = workload.config
    pass_sizes = SweepFolder(config.name).path / "pass_sizes.json"
    return PackedEngine(config.engine.slots, workload.highest_rank, fallback, pass_sizes, workload.trials)


# The engines that `engine.name` names. torch waits until one of them is built.
ENGINES: Mapping[str, Callable[[Workload], Engine]] = {"auto": _auto, "packed": _packed, "trainer": _trainer}

# The engines that train several trials at once, so that each of them can be compared with those beside it. Searches
# with another engine are pruned only if the user asks for it.
SEVERAL_AT_ONCE = frozenset({"auto", "packed", "external"})


def check_engine(config: SweepConfig) -> None:
    """Raises InputError for an engine that does not exist."""
    name, choices = config.engine.name, [*ENGINES, "external"]
    if name not in choices:
        raise InputError(f"engine.name={name!r}: no such engine (choices: {', '.join(choices)})")
    if name != "external" and config.search.metric != EVAL_LOSS:
        raise InputError(
            f"search.metric={config.search.metric}: these trials log eval_loss; rank by it, or train with "
            "engine=external"
        )


def build_engine(workload: Workload) -> Engine:
    """The engine that `engine.name` asks for. Raises InputError if it cannot train these trials."""
    return ENGINES[workload.config.engine.name](workload)
