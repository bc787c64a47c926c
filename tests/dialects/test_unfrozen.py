"""Axolotl's `unfrozen_parameters`, and what ms-swift has like it: what trials take, and what is left to them."""

import re
from typing import Any

import pytest

from lrsweep.config.schema import SweepConfig, replace
from lrsweep.dialects import TRAINERS, sweep_file, tree
from lrsweep.dialects.imported_run import Imported
from lrsweep.dialects.importer import imported
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.errors import InputError
from lrsweep.files.yaml_writer import to_yaml
from tests.dialects.test_exactness import FILES

FILE = FILES["axolotl"] | {"attn_implementation": "flash_attention_2"}
PATTERNS = ["transformer.blocks.[0-7].", "^lm_head.weight$[:32000]"]


def axolotl(**keys: Any) -> Imported:
    return imported("axolotl", FILE | keys, "f.yaml")


@pytest.mark.parametrize(
    ("keys", "pure"),
    [
        ({"unfrozen_parameters": PATTERNS}, True),
        ({"unfrozen_parameters": PATTERNS, "bf16": False}, False),
        ({"unfrozen_parameters": PATTERNS[:1], "deepspeed": "deepspeed_configs/zero3_bf16.json"}, False),
        ({"unfrozen_parameters": PATTERNS[:1], "fsdp_config": {"offload_params": False}}, False),
    ],
)
def test_our_engines_train_the_patterns_of_whole_weights(keys: dict[str, Any], pure: bool) -> None:
    run = axolotl(**keys)
    finetune = run.config.finetune
    assert not run.reasons
    assert (finetune.mode, list(finetune.unfrozen_parameters)) == ("freeze", keys["unfrozen_parameters"])
    assert finetune.pure_bf16 == pure
    assert tree(TRAINERS["axolotl"], run.config, set()) == FILE | keys
    note = TRAINERS["axolotl"].not_here(run.config)
    assert ("Trials kept the trained weights in float32" in note) == (not pure and "bf16" not in keys)


@pytest.mark.parametrize("empty", [None, [], False])
def test_without_patterns_all_weights_are_trained(empty: Any) -> None:
    run = axolotl(unfrozen_parameters=empty)
    assert (run.reasons, run.config.finetune.mode) == ((), "full")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"unfrozen_parameters": "lm_head"}, "unfrozen_parameters='lm_head': not a list of patterns"),
        ({"unfrozen_parameters": [["lm_head"]]}, "unfrozen_parameters=[['lm_head']]: not a list of patterns"),
        ({"unfrozen_parameters": ["model.("]}, "unfrozen_parameters: 'model.(' is no regular expression: "),
        ({"unfrozen_parameters": ["lm_head[9:9]"]}, "unfrozen_parameters: 'lm_head[9:9]': its range holds no rows"),
        (
            {"unfrozen_parameters": ["lm_head[:9]"], "deepspeed": "zero3.json"},
            "unfrozen_parameters=['lm_head[:9]']: with DeepSpeed or FSDP, Axolotl may train other rows too",
        ),
        (
            {"unfrozen_parameters": ["lm_head[:9]"], "fsdp_config": {"offload_params": False}},
            "unfrozen_parameters=['lm_head[:9]']: with DeepSpeed or FSDP",
        ),
        (
            {"unfrozen_parameters": ["model.language_model.*", "lm_head"]},
            "unfrozen_parameters=['model.language_model.*', 'lm_head']: names of a model of images too",
        ),
        (
            {"unfrozen_parameters": PATTERNS, "adapter": "qlora", "load_in_4bit": True, "lora_r": 8, "lora_alpha": 16},
            "unfrozen_parameters=['transformer.blocks.[0-7].', '^lm_head.weight$[:32000]']: trials train adapters",
        ),
        (
            {"unfrozen_parameters": PATTERNS, "attn_implementation": None},
            "attn_implementation: without flash",
        ),
    ],
)
def test_what_trials_would_train_otherwise_is_left_to_axolotl(keys: dict[str, Any], said: str) -> None:
    (reason,) = axolotl(**keys).reasons
    assert reason.startswith(said), reason
    assert "\n" not in reason


def without_file(run: Imported) -> SweepConfig:
    return run.config.model_copy(update={"origin": None})


def test_patterns_go_through_a_sweep_file_and_an_export() -> None:
    run = axolotl(unfrozen_parameters=PATTERNS)
    written = load_yaml(sweep_file.text(run, "mine"), "sweep")
    assert written["finetune"]["unfrozen_parameters"] == PATTERNS
    exported = tree(TRAINERS["axolotl"], without_file(run), set())
    assert exported["unfrozen_parameters"] == PATTERNS
    again = imported("axolotl", load_yaml(to_yaml(exported), "export"), "f.yaml")
    assert (again.reasons, again.config.finetune) == ((), run.config.finetune)


def test_searched_patterns_change_the_file() -> None:
    run = axolotl(unfrozen_parameters=PATTERNS)
    best = replace(run.config, {"finetune.unfrozen_parameters": ["lm_head"]})
    out = tree(TRAINERS["axolotl"], best, {"finetune.unfrozen_parameters"})
    assert out == FILE | {"unfrozen_parameters": ["lm_head"]}


def test_other_trainers_refuse_or_say_it() -> None:
    config = without_file(axolotl(unfrozen_parameters=PATTERNS))
    for name in ("llamafactory", "trl"):
        with pytest.raises(InputError, match=r"^finetune\.(unfrozen_parameters|mode)=") as refused:
            tree(TRAINERS[name], replace(config, {"data.drop_long_rows": False}), set())
        assert "\n" not in str(refused.value)
    for text in PATTERNS:
        assert text in TRAINERS["transformers"].not_here(config)


SWIFT = FILES["ms-swift"] | {"tuner_type": "full", "torch_dtype": "bfloat16", "learning_rate": 1e-5}


@pytest.mark.parametrize(
    ("keys", "patterns"),
    [
        ({"freeze_parameters_ratio": 1, "trainable_parameters": ["lm_head", "model.layers.3."]}, 2),
        ({"freeze_parameters_ratio": 0.0, "trainable_parameters": []}, 0),
        ({}, 0),
    ],
)
def test_ms_swifts_starts_of_names_are_patterns(keys: dict[str, Any], patterns: int) -> None:
    run = imported("ms-swift", SWIFT | keys, "f.yaml")
    finetune = run.config.finetune
    assert not run.reasons
    assert (finetune.mode, finetune.pure_bf16) == ("freeze" if patterns else "full", True)
    assert finetune.unfrozen_parameters == ("^lm_head", "^model.layers.3.")[:patterns]
    assert tree(TRAINERS["ms-swift"], run.config, set()) == SWIFT | keys
    assert tree(TRAINERS["ms-swift"], without_file(run), set()).get("trainable_parameters", []) == (
        ["lm_head", "model.layers.3."] if patterns else []
    )


@pytest.mark.parametrize(
    "keys",
    [
        {"freeze_parameters_ratio": 0.5},
        {"freeze_parameters_ratio": 1},
        {"freeze_parameters_ratio": 0.5, "trainable_parameters": ["lm_head"]},
        {"trainable_parameters": ["lm_head"]},
        {"freeze_parameters_ratio": 1, "trainable_parameters": "lm_head"},
        {"freeze_parameters_ratio": 1, "trainable_parameters": ["model.(a|b)"]},
        {"freeze_parameters_ratio": 1, "trainable_parameters": ["model.language_model"]},
        {"freeze_parameters_ratio": 1, "trainable_parameters": ["lm_head"], "trainable_parameters_regex": "mlp"},
        {"freeze_parameters_ratio": 1, "trainable_parameters": ["lm_head"], "tuner_type": "lora"},
        {"freeze_parameters": ["lm_head"]},
    ],
)
def test_other_ways_of_freezing_are_left_to_ms_swift(keys: dict[str, Any]) -> None:
    (reason,) = imported("ms-swift", SWIFT | keys, "f.yaml").reasons
    assert re.match("freeze_parameters|trainable_parameters", reason)


@pytest.mark.parametrize("pattern", ["lm_head", "^lm_head.weight$", "^layers.[0-7].", "^lm_head[:9]"])
def test_ms_swift_takes_no_other_patterns(pattern: str) -> None:
    keys = {"freeze_parameters_ratio": 1, "trainable_parameters": ["lm_head"]}
    config = replace(imported("ms-swift", SWIFT | keys, "f.yaml").config, {"finetune.unfrozen_parameters": [pattern]})
    with pytest.raises(InputError, match=r"^finetune\.unfrozen_parameters=.*: ms-swift takes the starts of names only"):
        tree(TRAINERS["ms-swift"], config, {"finetune.unfrozen_parameters"})


def test_llamafactorys_own_file_does_not_lose_the_patterns() -> None:
    """Its layers are those of the file; the patterns come from the command line."""
    file = FILES["llamafactory"] | {"finetuning_type": "freeze"}
    config = imported("llamafactory", file, "f.yaml").config
    with pytest.raises(InputError, match=r"^finetune\.unfrozen_parameters=\('lm_head',\): LLaMA-Factory trains with"):
        tree(TRAINERS["llamafactory"], replace(config, {"finetune.unfrozen_parameters": ["lm_head"]}), set())


def test_the_last_layers_have_no_name_there() -> None:
    config = replace(without_file(axolotl()), {"finetune.mode": "freeze"})
    for name in ("axolotl", "ms-swift"):
        with pytest.raises(InputError, match=r"^finetune\.mode=freeze: .*give finetune\.unfrozen_parameters, or"):
            tree(TRAINERS[name], config, set())
