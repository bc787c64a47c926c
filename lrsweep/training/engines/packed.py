"""Many trials at once over one frozen base: the trainer engine's curves in a fraction of its time.

A trial keeps its own step, schedule, row order and optimizer; only the forward and backward passes are shared. A slot
that comes free is refilled before the next step.
"""

import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from lrsweep.errors import StorageError
from lrsweep.training.engines import Engine, Host, Trial, failed
from lrsweep.training.engines.checkpoint_writer import CheckpointWriter
from lrsweep.training.engines.pack_loader import load_pack
from lrsweep.training.engines.pack_run import PackRun
from lrsweep.training.packing import Unpackable
from lrsweep.training.packing.pass_size import PassSizes
from lrsweep.training.phases import phase

log = logging.getLogger(__name__)


class PackedEngine:
    """Trains up to `slots` trials step by step together. Trials that cannot share a base are trained pack after pack.

    Args:
        slots: Slots of a pack; `auto` is as many as memory allows.
        rank: The highest LoRA rank among the trials to come; lower ones are padded to it.
        fallback: Builds the engine for trials that cannot be packed. Without one, such a trial fails with the reason.
        pass_sizes: The file that keeps how many trials share a pass.
        at_most: The worker's share of the sweep, for `auto`: one that takes more leaves other workers idle.
    """

    def __init__(
        self,
        slots: int | Literal["auto"],
        rank: int,
        fallback: Callable[[], Engine] | None = None,
        pass_sizes: Path | None = None,
        at_most: int = 256,
    ) -> None:
        self._slots = slots
        self._at_most = at_most
        self._rank = rank
        self._fallback = fallback
        self._pass_sizes = PassSizes(pass_sizes)
        self._writer = CheckpointWriter()
        # The last pack stays loaded: the trials that follow from its results usually share it.
        self._last: PackRun | None = None

    def run(self, host: Host) -> None:
        """Trains every trial of the host. An error in one trial ends that trial, not the run."""
        with self._writer.all_written():
            trial = host.next_trial()
            while trial is not None:
                trial = self._train(trial, host)

    def _train(self, trial: Trial, host: Host) -> Trial | None:
        """Trains a trial, and those that may share its pack; returns the next trial of the host."""
        try:
            self._last = self._last if self._last and self._last.takes(trial, host) else self._load(trial, host)
        except (StorageError, torch.AcceleratorError):
            raise
        except Exception as fault:
            if not isinstance(fault, Unpackable) or self._fallback is None:
                host.finish(failed(trial, fault))
                return host.next_trial()
            log.warning("trial %d cannot be packed: %s", trial.number, str(fault))
        else:
            return self._last.train(trial)
        # The error held the base that could not be packed; here it is gone, before the fallback loads its own.
        _free_memory()
        self._fallback().run(_OneTrialHost(trial, host))
        return host.next_trial()

    def _load(self, trial: Trial, host: Host) -> PackRun:
        """A trial's pack. The last one is dropped first, to make room."""
        self._last = None
        _free_memory()
        phase("loading the model")
        loaded = load_pack(trial.config, self._slots, max(self._rank, trial.config.finetune.r), self._at_most)
        return PackRun(loaded, self._pass_sizes, host, self._writer)


def _free_memory() -> None:
    """Frees what nothing refers to any more: a converted model is full of cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _OneTrialHost:
    """A host with one trial left."""

    def __init__(self, trial: Trial, host: Host) -> None:
        self._trials = [trial]
        self.report = host.report
        self.finish = host.finish

    def next_trial(self) -> Trial | None:
        """The one trial, then None."""
        return self._trials.pop() if self._trials else None
