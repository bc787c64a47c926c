"""When a trial's checkpoint is due, and the digest that tells which trial it belongs to."""

import hashlib
import json
import time

from lrsweep.config.schema import SweepConfig, default_values, key_facts, trial_part
from lrsweep.config.trial_schema import TrainingConfig


def trial_digest(config: SweepConfig) -> str:
    """The SHA-256 of all keys that affect a trial's measurements: only a trial with the same one may resume from it.

    Keys that came later do not count while they have their defaults, so that a trial of an earlier version goes on.
    """
    defaults = default_values()
    part = {
        section: {
            name: value
            for name, value in values.items()
            if not (key_facts(key := f"{section}.{name}").later and value == defaults[key])
        }
        for section, values in trial_part(config).items()
    }
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()


def is_due(training: TrainingConfig, since: float) -> bool:
    """Whether a trial needs another checkpoint; `since` is the monotonic time of its last one, in seconds."""
    wanted = training.checkpoint_seconds
    return wanted is not None and time.monotonic() - since >= wanted
