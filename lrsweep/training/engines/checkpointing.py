"""Which trial a checkpoint belongs to, and when one is due."""

import hashlib
import json
import time

from lrsweep.config.schema import SweepConfig, trial_part
from lrsweep.config.trial_schema import TrainingConfig


def trial_digest(config: SweepConfig) -> str:
    """A digest of all keys that change what a trial measures: only such a trial may resume from its checkpoint."""
    return hashlib.sha256(json.dumps(trial_part(config), sort_keys=True).encode()).hexdigest()


def is_due(training: TrainingConfig, since: float) -> bool:
    """Whether a trial wants another checkpoint; `since` is when its last one was made, in monotonic seconds."""
    wanted = training.checkpoint_seconds
    return wanted is not None and time.monotonic() - since >= wanted
