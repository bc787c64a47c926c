"""LoRA+: B's learning rate is a multiple of A's, also where a ramp sets the rate."""

import pytest

from lrsweep.training.optimizer import loraplus
from lrsweep.training.plain_loop import PlainLoop
from tests.recorder import tiny


def test_a_ramp_keeps_the_ratio_of_lora_plus() -> None:
    loop = PlainLoop(tiny("finetune.loraplus_lr_ratio=16", "optimizer.weight_decay=0.1"))
    names = {weight: name for name, weight in loop.model.named_parameters()}
    loop.gradients([[0]])
    loop.step(lr=1e-5)
    found = {
        "lora_B" in names[weight]: (group["lr"], group["weight_decay"])
        for group in loop.optimizer.param_groups
        for weight in group["params"]
    }
    assert found == {False: (1e-5, 0.1), True: (pytest.approx(1.6e-4), 0.1)}
    assert {len(group["params"]) for group in loop.optimizer.param_groups} == {len(names_of(loop)) // 2}


def names_of(loop: PlainLoop) -> list[str]:
    return [name for name, weight in loop.model.named_parameters() if weight.requires_grad]


@pytest.mark.parametrize("overrides", [(), ("finetune=full", "finetune.loraplus_lr_ratio=16")])
def test_without_it_there_is_one_rate(overrides: tuple[str, ...]) -> None:
    config = tiny(*overrides)
    loop = PlainLoop(config)
    assert loraplus(loop.model, config.optimizer, config.finetune) is None
    assert {group["lr"] for group in loop.optimizer.param_groups} == {config.optimizer.lr}
