"""Remedies in a report: each changes something, and starts from what the trial had."""

from typing import Any

import numpy as np
import pytest

from lrsweep.analysis.diagnosis import Advice, Curve, Series
from lrsweep.analysis.diagnosis.remedies import LESS_DECAY, against_oscillation, against_overfitting, lower_lr
from lrsweep.analysis.diagnosis.trial_remedies import fitted
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig, replace

DEFAULT = sweep_config(["+sweep=lora_lr", "optimizer.lr=1e-2", "scheduler.warmup_ratio=0.1"])
NOTHING = Series(np.empty(0), np.empty(0))
CURVE = Curve(NOTHING, NOTHING, NOTHING, NOTHING)


def overrides(advice: tuple[Advice, ...], config: SweepConfig) -> list[dict[str, Any]]:
    return [dict(one.overrides) for one in fitted(advice, config)]


def test_a_longer_warmup_is_longer_than_the_one_there_was() -> None:
    _, warmup, _ = lower_lr(CURVE)
    assert overrides((warmup,), DEFAULT) == [{"scheduler.warmup_ratio": 0.2, "scheduler.warmup_steps": None}]
    none = replace(DEFAULT, {"scheduler.name": "constant", "scheduler.warmup_ratio": None})
    assert overrides((warmup,), none) == [
        {"scheduler.warmup_ratio": 0.1, "scheduler.warmup_steps": None, "scheduler.name": "constant_with_warmup"}
    ]
    assert overrides((warmup,), replace(DEFAULT, {"scheduler.warmup_ratio": 0.4})) == []


def test_twice_the_batch_is_twice_the_trials() -> None:
    (batch,) = (one for one in against_oscillation(CURVE) if "batch" in one.text)
    assert overrides((batch,), DEFAULT) == [{"training.batch_size": 16, "optimizer.lr": 0.014}]


@pytest.mark.parametrize("change", [{"optimizer.betas": [0.8, 0.95]}, {"optimizer.name": "sgd"}])
def test_what_the_trial_did_already_or_cannot_is_left_out(change: dict[str, Any]) -> None:
    *_, beta = lower_lr(CURVE)
    assert overrides((beta,), DEFAULT) == [{"optimizer.betas": [0.8, 0.999]}]
    assert overrides((beta,), replace(DEFAULT, change)) == []


def test_more_decay_is_more_and_less_is_less() -> None:
    (decay,) = (one for one in against_overfitting(CURVE, 10) if "decay" in one.text)
    assert overrides((decay,), DEFAULT) == [{"optimizer.weight_decay": 0.1}]
    assert overrides((decay,), replace(DEFAULT, {"optimizer.weight_decay": 0.3})) == [{"optimizer.weight_decay": 0.6}]
    tiny = replace(DEFAULT, {"optimizer.weight_decay": 1e-4})
    assert overrides(LESS_DECAY, tiny) == [{"optimizer.weight_decay": 0.0}]
