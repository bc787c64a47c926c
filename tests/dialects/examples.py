"""Configs as the tools' users write them, from their documented keys; and each tool's default for an absent key."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LLAMAFACTORY_LORA = """\
### model
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: q_proj,v_proj  # attention only

### dataset
dataset: identity,talks
template: qwen
cutoff_len: 1024
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 4
val_size: 0.1

### output
output_dir: saves/qwen/lora
logging_steps: 10
save_steps: 500
plot_loss: true
report_to: none  # [none, wandb, tensorboard]

### train
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000

### eval
per_device_eval_batch_size: 4
eval_strategy: steps
eval_steps: 500
"""
LLAMAFACTORY_FULL = """\
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
stage: sft
do_train: true
finetuning_type: full
deepspeed: examples/deepspeed/ds_z3_config.json
dataset: identity
template: qwen
output_dir: saves/qwen/full
per_device_train_batch_size: 1
gradient_accumulation_steps: 2
learning_rate: 1.0e-5
max_steps: 900
lr_scheduler_type: cosine
warmup_steps: 90
adam_beta2: 0.95
weight_decay: 0.1
"""
TRANSFORMERS = """\
output_dir: run
learning_rate: 2e-5
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
max_steps: 1200
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
warmup_steps: 0.03
optim: adamw_torch_fused
adam_beta2: 0.95
weight_decay: 0.1
bf16: true
gradient_checkpointing: true
save_strategy: 'no'  # a truth without its quotes
report_to: [tensorboard]
"""
TRL = """\
model_name_or_path: Qwen/Qwen2.5-0.5B
dataset_name: trl-lib/Capybara
learning_rate: 2.0e-4
num_train_epochs: 1
packing: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
eval_strategy: steps
eval_steps: 100
use_peft: true
lora_r: 32
lora_alpha: 16
lora_target_modules: all-linear
assistant_only_loss: true
lr_scheduler_type: constant_with_warmup
warmup_steps: 20
output_dir: Qwen2.5-0.5B-SFT
push_to_hub: true
"""
AXOLOTL = """\
base_model: NousResearch/Llama-3.2-1B
# Push to the hub where wanted
# hub_model_id: user/model

load_in_8bit: false
load_in_4bit: true

datasets:
  - path: fozziethebeat/alpaca_messages_2k_test
    type: chat_template
    field_messages: messages
    message_property_mappings:
      role: role
      content: content
dataset_prepared_path: last_run_prepared
val_set_size: 0.1
output_dir: ./outputs/qlora-out

adapter: qlora
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules:
  - q_proj
  - v_proj

sequence_len: 2048
sample_packing: true
eval_sample_packing: true

wandb_project:
wandb_entity:

gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 2
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002

bf16: auto
tf32: false

gradient_checkpointing: true
logging_steps: 1
attn_implementation: flash_attention_2

warmup_ratio: 0.1
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens:
  pad_token: "<|end_of_text|>"
"""
MS_SWIFT = """\
# model args
model: ./model
torch_dtype: bfloat16
tuner_type: lora
lora_rank: 8
lora_alpha: 32
target_modules: all-linear

dataset:
  - rows.jsonl  # chat rows
template_backend: jinja
split_dataset_ratio: 0.01
max_length: 2048

num_train_epochs: 1
per_device_train_batch_size: 1
per_device_eval_batch_size: 1
learning_rate: 1e-4
gradient_accumulation_steps: 8
eval_steps: 50
save_steps: 50
save_total_limit: 2
logging_steps: 5
output_dir: output
warmup_ratio: 0.05
dataloader_num_workers: 4
dataset_num_proc: 4
deepspeed: zero2
"""
EXAMPLES = [
    ("llamafactory", LLAMAFACTORY_LORA),
    ("llamafactory", LLAMAFACTORY_FULL),
    ("transformers", TRANSFORMERS),
    ("trl", TRL),
    ("axolotl", AXOLOTL),
    ("ms-swift", MS_SWIFT),
]

_ARGUMENTS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "linear",
    "lr_scheduler_kwargs": {},
    "warmup_steps": 0,
    "warmup_ratio": 0.0,
    "seed": 42,
    "max_steps": -1,
    "num_train_epochs": 3.0,
    "eval_strategy": "no",
    "per_device_eval_batch_size": 8,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llamafactory": _ARGUMENTS
    | {
        "learning_rate": 5e-5,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "use_dora": False,
        "use_rslora": False,
        "freeze_trainable_layers": 2,
        "dataset_dir": "data",
        "cutoff_len": 2048,
        "packing": False,
        "neat_packing": False,
        "bf16": False,
        "flash_attn": "auto",
        "model_revision": "main",
        "val_size": 0.0,
        "disable_gradient_checkpointing": False,
    },
    "transformers": _ARGUMENTS | {"learning_rate": 5e-5, "bf16": False, "gradient_checkpointing": False},
    "trl": _ARGUMENTS
    | {
        "learning_rate": 2e-5,
        "bf16": True,
        "gradient_checkpointing": True,
        "use_peft": False,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "use_dora": False,
        "use_rslora": False,
        "max_length": 1024,
        "packing": False,
        "dataset_train_split": "train",
        "dataset_test_split": "test",
        "dataset_text_field": "text",
        "model_revision": "main",
        "load_in_4bit": False,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "use_bnb_nested_quant": False,
    },
    "axolotl": {
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "lr_scheduler": "cosine",
        "lr_scheduler_kwargs": {},
        "seed": 42,
        "num_epochs": 1.0,
        "sequence_len": 512,
        "sample_packing": False,
        "gradient_checkpointing": False,
        "bf16": "auto",
        "load_in_4bit": False,
        "load_in_8bit": False,
        "lora_dropout": 0.0,
        "peft_use_dora": False,
        "peft_use_rslora": False,
        "optimizer": "adamw_torch_fused",
        "val_set_size": 0.0,
        "excess_length_strategy": "drop",
    },
    "ms-swift": _ARGUMENTS
    | {
        "learning_rate": 1e-4,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "tuner_type": "lora",
        "lora_rank": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "target_modules": ["all-linear"],
        "use_dora": False,
        "use_rslora": False,
        "packing": False,
        "truncation_strategy": "delete",
        "split_dataset_ratio": 0.0,
        "gradient_checkpointing": True,
        "use_hf": False,
    },
}


def meaning(dialect: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """What a config comes to: every key that is absent or null stands at its default."""
    return {**DEFAULTS[dialect], **{key: value for key, value in tree.items() if value is not None}}


def put(folder: Path, name: str, rows: list[Any], **entry: Any) -> None:
    """A data set, added to the folder's dataset_info.json."""
    folder.mkdir(parents=True, exist_ok=True)
    info = folder / "dataset_info.json"
    known = json.loads(info.read_text()) if info.exists() else {}
    (folder / f"{name}.json").write_text(json.dumps(rows))
    info.write_text(json.dumps({**known, name: {"file_name": f"{name}.json", **entry}}))


def write_data(folder: Path, rows: int = 40) -> None:
    """The data sets that the examples name."""
    put(
        folder,
        "identity",
        [{"instruction": f"Who is {n}?", "input": "", "output": f"Number {n}."} for n in range(rows)],
    )
    talks = [
        {"conversations": [{"from": "human", "value": f"Say {n}"}, {"from": "gpt", "value": str(n)}]}
        for n in range(rows)
    ]
    put(folder, "talks", talks, formatting="sharegpt", columns={"messages": "conversations"})
