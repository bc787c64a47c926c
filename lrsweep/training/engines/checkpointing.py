"""When a trial's checkpoint is due, and the digest that tells which trial it belongs to."""

import hashlib
import json
import time

from lrsweep.config.schema import SweepConfig, default_values, key_facts, trial_part
from lrsweep.config.trial_schema import TrainingConfig

# Writing checkpoints may take this share of the time.
_SHARE = 0.1


def trial_digest(config: SweepConfig) -> str:
    """The SHA-256 of all keys that affect a trial's measurements: only a trial with the same one may resume from it.

    Keys that came later do not count while they have their defaults, so that a trial of an earlier version goes on.
    """
    # A tuple is a list in JSON.
    defaults = json.loads(json.dumps(default_values()))
    part = {
        section: {
            name: value
            for name, value in values.items()
            if not (key_facts(key := f"{section}.{name}").later and value == defaults[key])
        }
        for section, values in trial_part(config).items()
    }
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()


def is_due(training: TrainingConfig, since: float, cost: float) -> bool:
    """Whether a trial needs another checkpoint.

    Args:
        training: The trial's training section.
        since: The monotonic time of its last checkpoint, in seconds.
        cost: How many seconds it takes to write a checkpoint of every trial that trains beside it, and of this one.
    """
    wanted = training.checkpoint_seconds
    if wanted is None:
        return False
    return wanted == 0 or time.monotonic() - since >= max(wanted, cost / _SHARE)
