"""Parameters with learning rates of their own: LoRA+ and `optimizer.lr_groups`, also where a ramp sets the rate."""

import pytest

from lrsweep.config.schema import replace
from lrsweep.errors import InputError
from lrsweep.training.model import check_trainable
from lrsweep.training.optimizer import lr_factors, with_own_rates
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
    assert with_own_rates(loop.model, config.optimizer, config.finetune) is None
    assert {group["lr"] for group in loop.optimizer.param_groups} == {config.optimizer.lr}


def test_the_first_group_that_fits_counts_and_the_others_keep_the_rate() -> None:
    config = tiny("optimizer.lr_groups={layers.0: 0.5, q_proj: 0.1}", "optimizer.weight_decay=0.1")
    loop = PlainLoop(config)
    names = {weight: name for name, weight in loop.model.named_parameters()}
    found = {names[weight]: group["lr"] for group in loop.optimizer.param_groups for weight in group["params"]}
    assert found == {
        name: config.optimizer.lr * (0.5 if "layers.0." in name else 0.1 if "q_proj" in name else 1)
        for name in names_of(loop)
    }
    assert loop.optimizer.param_groups[0]["lr"] == config.optimizer.lr


def test_norms_in_a_group_do_not_decay() -> None:
    loop = PlainLoop(tiny("finetune=full", "optimizer.lr_groups={layers: 0.5}", "optimizer.weight_decay=0.1"))
    names = {weight: name for name, weight in loop.model.named_parameters()}
    for group in loop.optimizer.param_groups:
        for weight in group["params"]:
            assert group["weight_decay"] == (0.0 if "norm" in names[weight] else 0.1)


def test_the_names_are_the_models_own_for_peft_too() -> None:
    config = tiny("optimizer.lr_groups={layers.0.*proj.lora_B.weight$: 16}")
    live = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
    saved = live.replace(".default.", ".")
    for name in (live, saved):
        assert lr_factors([name, "other"], config.optimizer, config.finetune) == {name: 16}


def test_a_group_without_a_parameter_is_refused_with_names_that_are_there() -> None:
    config = tiny("optimizer.lr_groups={lora_B: 16, vision: 0.1}")
    said = (
        r"^optimizer\.lr_groups\.vision=0\.1: no trained parameter has this in its name; trained are model\.layers\.0\."
    )
    with pytest.raises(InputError, match=said):
        check_trainable(config.model, config.finetune, config.optimizer)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr_groups={*proj: 0.1}", "'\\*proj' is no regular expression"),
        ("optimizer.lr_groups={layers: 0}", "optimizer.lr_groups.layers"),
        ("optimizer.lr_groups={layers: fast}", "optimizer.lr_groups.layers"),
        ("optimizer.lr_groups=layers", "optimizer.lr_groups"),
    ],
)
def test_groups_that_make_no_sense_are_refused(override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        tiny(override)


def test_lora_plus_and_groups_together_are_refused() -> None:
    with pytest.raises(InputError, match=r"loraplus_lr_ratio and optimizer\.lr_groups both give"):
        tiny("finetune.loraplus_lr_ratio=16", "optimizer.lr_groups={lora_A: 0.5}")


@pytest.mark.parametrize("pattern", [r"([\w.]+)+,", "(a*)*", "(a{1,9}){1,9}"])
def test_a_pattern_that_may_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match="may take for ever"):
        replace(tiny(), {"optimizer.lr_groups": {pattern: 0.1}})
