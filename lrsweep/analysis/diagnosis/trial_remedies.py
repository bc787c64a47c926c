"""Fits a curve's remedies to the trial: starts from the trial's own values and drops what it does already."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lrsweep.analysis.diagnosis import TWICE_THE_BATCH, Advice
from lrsweep.config.schema import SweepConfig, flatten

# A warm-up longer than this share of the schedule leaves too little for the rest.
_LONGEST_WARMUP = 0.5
# torch's optimizers without betas.
_WITHOUT_BETAS = {"adagrad", "adafactor", "rmsprop", "sgd"}


def fitted(advice: Sequence[Advice], config: SweepConfig) -> tuple[Advice, ...]:
    """Fits remedies to a trial.

    Args:
        advice: The remedies, as the diagnosis gives them.
        config: The trial's config.

    Returns:
        The remedies with overrides that start from the trial's values, without those that would change nothing.
    """
    found = [replace(one, overrides=_fitted_overrides(one, config)) for one in advice]
    now = flatten(config.model_dump(mode="json"))
    return tuple(
        new
        for old, new in zip(advice, found, strict=True)
        if (not old.overrides and not new.overrides)
        or any(now.get(key) != value for key, value in new.overrides.items())
    )


def _fitted_overrides(advice: Advice, config: SweepConfig) -> Mapping[str, Any]:
    optimizer, scheduler, training = config.optimizer, config.scheduler, config.training
    overrides = advice.overrides
    if advice.text == TWICE_THE_BATCH:
        lr = float(f"{optimizer.lr * 2**0.5:.2g}")
        return {"training.batch_size": 2 * training.batch_size, "optimizer.lr": lr}
    if "scheduler.warmup_ratio" in overrides:
        share = scheduler.warmup(training.schedule_steps) / training.schedule_steps
        if share > _LONGEST_WARMUP / 2:
            return {}
        longer = {"scheduler.warmup_ratio": round(max(2 * share, 0.1), 3), "scheduler.warmup_steps": None}
        # The schedule named `constant` has no warm-up.
        return longer | ({"scheduler.name": "constant_with_warmup"} if scheduler.name == "constant" else {})
    if "optimizer.betas" in overrides:
        wanted = overrides["optimizer.betas"][0]
        if optimizer.name in _WITHOUT_BETAS or optimizer.betas[0] <= wanted:
            return {}
        return {"optimizer.betas": [wanted, optimizer.betas[1]]}
    if "optimizer.weight_decay" in overrides:
        wanted = overrides["optimizer.weight_decay"]
        more = wanted >= 0.1
        return {"optimizer.weight_decay": max(wanted, 2 * optimizer.weight_decay)} if more else overrides
    return overrides
