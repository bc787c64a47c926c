"""What would change the sweep's meaning if dropped is refused: one line with the key, its value and what to do."""

from pathlib import Path
from typing import Any

import pytest

from lrsweep import dialects
from lrsweep.config.schema import replace
from lrsweep.dialects.importer import from_tree
from lrsweep.errors import InputError

LEAST: dict[str, dict[str, Any]] = {
    "llamafactory": {"model_name_or_path": "m", "dataset": "d"},
    "transformers": {},
    "trl": {"model_name_or_path": "m", "dataset_name": "d", "assistant_only_loss": True},
    "ms-swift": {"model": "./m", "dataset": "d.jsonl", "max_length": 99},
    "axolotl": {
        "base_model": "m",
        "learning_rate": 1e-4,
        "datasets": [{"path": "d", "type": "chat_template"}],
        "attn_implementation": "flash_attention_2",
    },
}
BY_TABLE = [
    (name, key, refusal)
    for name, dialect in dialects.TRAINERS.items()
    if name in LEAST
    for refusal in dialect.refusals
    for key in refusal.keys.split()
]
BY_VALUE: list[tuple[str, dict[str, Any], str]] = [
    ("llamafactory", {"stage": "dpo"}, "stage='dpo': trials do supervised fine-tuning only; set stage: sft"),
    (
        "llamafactory",
        {"use_galore": True},
        "use_galore=True: it is another optimizer, with another best learning rate; ",
    ),
    ("llamafactory", {"finetuning_type": "oft"}, "finetuning_type=oft: trials do lora, full and freeze; "),
    ("llamafactory", {"optim": "lion_32bit"}, "optim=lion_32bit: "),
    ("llamafactory", {"optim": "adamw_torch", "optim_args": "momentum=1"}, "optim_args='momentum=1': "),
    ("llamafactory", {"packing": True}, "packing=True: packed rows attend to one another there, "),
    ("llamafactory", {"template": "glm4"}, "template=glm4: lrsweep does not know what it writes "),
    ("llamafactory", {"dataset_dir": "ONLINE"}, "dataset_dir=ONLINE: trials read a dataset_info.json; "),
    ("llamafactory", {"quantization_bit": 3}, "quantization_bit=3: trials quantize to 4 or 8 bits; "),
    ("llamafactory", {"lora_rank": "eight"}, "lora_rank='eight': not a number; "),
    ("llamafactory", {"bf16": "perhaps"}, "bf16='perhaps': neither true nor false; "),
    ("llamafactory", {"optimizer": {"name": "adamw"}}, "optimizer={'name': 'adamw'}: lrsweep does not know what it "),
    ("llamafactory", {"output_dir": "${oc.env:HOME}/x"}, "output_dir='${oc.env:HOME}/x': holds ${...}"),
    ("llamafactory", {"micro_batch_size": 1}, "micro_batch_size=1: a key of the v1 engine (USE_V1=1), "),
    ("llamafactory", {"learning_rate": -1.0}, "learning_rate=-1.0: input should be greater than 0"),
    ("llamafactory", {"adam_beta1": 1.5}, "adam_beta1=1.5: input should be less than 1"),
    ("llamafactory", {"model_name_or_path": None}, "model_name_or_path: missing; "),
    ("llamafactory", {"dataset": None}, "dataset: missing; "),
    ("llamafactory", {"lr_scheduler_type": "greedy"}, "lr_scheduler_type=greedy: trials have no such schedule; "),
    ("transformers", {"optim": "adafactor"}, "optim=adafactor: "),
    ("transformers", {"num_train_epochs": 0}, "num_train_epochs=0: must be finite and above 0; "),
    (
        "trl",
        {"datasets": [{"path": "a"}, {"path": "b"}]},
        "datasets=[{'path': 'a'}, {'path': 'b'}]: trials read one data set; ",
    ),
    ("trl", {"datasets": [{"path": "a", "fraction": 0.5}]}, "datasets: fraction=0.5: "),
    ("trl", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type=fp4: "),
    ("axolotl", {"rl": "grpo"}, "rl='grpo': trials do supervised fine-tuning only; "),
    ("axolotl", {"tokens": ["<new>"]}, "tokens=['<new>']: it adds tokens to the model; "),
    ("axolotl", {"adapter": "llama-adapter"}, "adapter=llama-adapter: "),
    ("axolotl", {"adapter": "lora", "lora_target_linear": True}, "lora_r, lora_alpha: missing; "),
    ("axolotl", {"optimizer": "muon"}, "optimizer=muon: "),
    ("axolotl", {"lr_scheduler": "rex"}, "lr_scheduler=rex: "),
    ("axolotl", {"learning_rate": None}, "learning_rate: missing; "),
]


def refusal_of(dialect: str, changes: dict[str, Any]) -> str:
    with pytest.raises(InputError) as refused:
        from_tree(dialects.TRAINERS[dialect], LEAST[dialect] | changes, "f.yaml")
    return str(refused.value)


@pytest.mark.parametrize("dialect", LEAST)
def test_the_least_config_is_taken(dialect: str) -> None:
    from_tree(dialects.TRAINERS[dialect], LEAST[dialect], "f.yaml")


@pytest.mark.parametrize(("dialect", "key", "refusal"), BY_TABLE, ids=[f"{name}-{key}" for name, key, _ in BY_TABLE])
def test_every_refused_key_is_named_with_its_reason(dialect: str, key: str, refusal: Any) -> None:
    said = refusal_of(dialect, {key: "anything"})
    assert said == f"{key}='anything': {refusal.why}; {refusal.fix}"
    assert "\n" not in said
    for harmless in (None, *([False] if refusal.off else []), *refusal.harmless):
        from_tree(dialects.TRAINERS[dialect], LEAST[dialect] | {key: harmless}, "f.yaml")


@pytest.mark.parametrize(("dialect", "changes", "said"), BY_VALUE, ids=lambda value: str(value)[:40])
def test_a_value_that_trials_cannot_show(dialect: str, changes: dict[str, Any], said: str) -> None:
    found = refusal_of(dialect, changes)
    assert found.startswith(said), found
    assert "\n" not in found


def config(dialect: str = "trl") -> Any:
    return from_tree(dialects.TRAINERS[dialect], LEAST[dialect], "f.yaml").config


@pytest.mark.parametrize(
    ("dialect", "changes", "said"),
    [
        ("trl", {"optimizer.name": "nadam"}, "optimizer.name='nadam': TrainingArguments has no name for torch's "),
        (
            "transformers",
            {"optimizer.kwargs": {"amsgrad": True}},
            "optimizer.kwargs.amsgrad: TrainingArguments cannot pass it ",
        ),
        ("axolotl", {"optimizer.name": "sgd"}, "optimizer.name=sgd: "),
        ("trl", {"finetune.mode": "freeze"}, "finetune.mode=freeze: "),
        ("axolotl", {"finetune.mode": "freeze"}, "finetune.mode=freeze: "),
        (
            "trl",
            {"finetune.mode": "lora", "finetune.alpha": 12.5},
            "finetune.alpha=12.5: TRL takes whole numbers only; ",
        ),
        ("llamafactory", {"finetune.mode": "lora", "finetune.alpha": 12.5}, "finetune.alpha=12.5: "),
        ("llamafactory", {"data.format": "text"}, "data.format=text: "),
        ("trl", {"data.format": "alpaca"}, "data.format=alpaca: TRL reads rows of messages, prompt_completion, text; "),
        ("axolotl", {"data.format": "alpaca"}, "data.format=alpaca: "),
        *((tool, {"data.format": "axolotl"}, "data.format=axolotl: ") for tool in ("llamafactory", "trl")),
        ("ms-swift", {"data.format": "axolotl", "model.dtype": "float32"}, "data.format=axolotl: "),
        ("llamafactory", {"model.attn_implementation": "flex_attention"}, "model.attn_implementation=flex_attention: "),
    ],
)
def test_what_a_tool_cannot_say_is_refused_not_dropped(dialect: str, changes: dict[str, Any], said: str) -> None:
    searched = replace(config(), changes).model_copy(update={"origin": None})
    with pytest.raises(InputError) as refused:
        dialects.tree(dialects.TRAINERS[dialect], searched, set(changes))
    assert str(refused.value).startswith(said), refused.value
    assert "\n" not in str(refused.value)


def test_llamafactorys_v1_engine_is_refused() -> None:
    trainer = dialects.TRAINERS["llamafactory"]
    with pytest.raises(
        InputError, match=r"^--target-version v1: LLaMA-Factory's v1 engine has no keys for betas, "
    ) as refused:
        dialects.tree(trainer, config(), set(), dialects.target_version(trainer, "v1"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("dialect", "version"), [("transformers", "new"), ("axolotl", "0.19")])
def test_a_version_that_says_nothing_is_refused(dialect: str, version: str) -> None:
    with pytest.raises(InputError, match=rf"^--target-version {version}: "):
        dialects.target_version(dialects.TRAINERS[dialect], version)


def test_an_import_of_an_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    from lrsweep.cli import import_config

    (tmp_path / "f.yaml").write_text("learning_rate: 1e-4")
    with pytest.raises(InputError) as refused:
        import_config.run(["torchtune", str(tmp_path / "f.yaml")])
    assert str(refused.value) == f"import torchtune: no such format (choices: {', '.join(dialects.TRAINERS)})"
