"""Many trials at once over one frozen base: the trainer engine's curves in a fraction of its time.

A trial keeps its own step, schedule, row order and optimizer; only the forward and backward passes are shared. A slot
that comes free is refilled before the next step.
"""

import gc
import logging
from pathlib import Path
from typing import Literal

import torch

from lrsweep.errors import StorageError
from lrsweep.training.engines import Engine, Host, Trial, failed
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
        fallback: The engine for trials that cannot be packed. Without one, such a trial fails with the reason.
        pass_sizes: The file that keeps how many trials share a pass.
        at_most: The worker's share of the sweep, for `auto`: one that takes more leaves other workers idle.
    """

    def __init__(
        self,
        slots: int | Literal["auto"],
        rank: int,
        fallback: Engine | None = None,
        pass_sizes: Path | None = None,
        at_most: int = 256,
    ) -> None:
        self._slots = slots
        self._at_most = at_most
        self._rank = rank
        self._fallback = fallback
        self._pass_sizes = PassSizes(pass_sizes)
        # The last pack stays loaded: the trials that follow from its results usually share it.
        self._last: PackRun | None = None

    def run(self, host: Host) -> None:
        """Trains every trial of the host. An error in one trial ends that trial, not the run."""
        trial = host.next_trial()
        while trial is not None:
            try:
                self._last = self._last if self._last and self._last.takes(trial, host) else self._load(trial, host)
            except (StorageError, torch.AcceleratorError):
                raise
            except Exception as fault:
                if isinstance(fault, Unpackable) and self._fallback is not None:
                    log.warning("trial %d cannot be packed: %s", trial.number, fault)
                    self._fallback.run(_OneTrialHost(trial, host))
                else:
                    host.finish(failed(trial, fault))
                trial = host.next_trial()
                continue
            trial = self._last.train(trial)

    def _load(self, trial: Trial, host: Host) -> PackRun:
        """A trial's pack. The last one is dropped first, to make room."""
        self._last = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        phase("loading the model")
        loaded = load_pack(trial.config, self._slots, max(self._rank, trial.config.finetune.r), self._at_most)
        return PackRun(loaded, self._pass_sizes, host)


class _OneTrialHost:
    """A host with one trial left."""

    def __init__(self, trial: Trial, host: Host) -> None:
        self._trials = [trial]
        self.report = host.report
        self.finish = host.finish

    def next_trial(self) -> Trial | None:
        """The one trial, then None."""
        return self._trials.pop() if self._trials else None
