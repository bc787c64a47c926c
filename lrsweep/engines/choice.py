"""Which engine trains a sweep's trials."""

from lrsweep.config import SweepConfig
from lrsweep.engines import Engine
from lrsweep.engines.packed import PackedEngine
from lrsweep.engines.shared import check_packable
from lrsweep.engines.trainer import TrainerEngine
from lrsweep.errors import InputError
from lrsweep.outputs import SweepFolder
from lrsweep.packing import Unpackable


def choose(config: SweepConfig, rank: int, share: int) -> Engine:
    """The engine that `engine.name` asks for; `rank` is the highest LoRA rank among the trials, `share` how many of them are
    one worker's.

    Raises InputError where packed is asked for and cannot be.
    """
    if config.engine.name == "trainer":
        return TrainerEngine()
    widths = SweepFolder(config.name).path / "widths.json"
    if config.engine.name == "packed":
        try:
            check_packable(config)
        except Unpackable as reason:
            raise InputError(f"engine=packed: {reason}; use engine=trainer, or engine=auto to have it chosen") from None
        return PackedEngine(config.engine.slots, rank, None, widths, share)
    return PackedEngine(config.engine.slots, rank, TrainerEngine(), widths, share)
