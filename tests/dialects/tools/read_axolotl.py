"""Run inside Axolotl's own environment: what its schema makes of a config, as JSON."""

import json
import sys

import yaml
from axolotl.utils.schemas.config import AxolotlInputConfig

with open(sys.argv[1], encoding="utf-8") as file:
    config = AxolotlInputConfig(**yaml.safe_load(file))
print(
    json.dumps(
        {
            "model": config.base_model,
            "data": [config.datasets[0].path, config.datasets[0].type, config.sequence_len, config.sample_packing],
            "lora": [config.adapter, config.lora_r, config.lora_alpha, config.lora_target_modules],
            "start": [config.peft_init_lora_weights, config.loraplus_lr_ratio],
            "lr": config.learning_rate,
            "betas": [config.adam_beta1, config.adam_beta2],
            "eps": config.adam_epsilon,
            "weight_decay": config.weight_decay,
            "warmup": [config.warmup_steps, config.warmup_ratio],
            "schedule": [config.lr_scheduler, config.lr_scheduler_kwargs or {}],
            "batch": [config.micro_batch_size, config.gradient_accumulation_steps],
            "length": [config.max_steps, config.num_epochs],
            "max_grad_norm": config.max_grad_norm,
            "seed": config.seed,
        }
    ),
    file=sys.stderr,
)
