"""Run inside TRL's own environment: what the parser of `trl sft` makes of a config, as JSON."""

import json
import sys

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
script, training, model, mixture = parser.parse_args_and_config(["--config", sys.argv[1]])
print(
    json.dumps(
        {
            "model": model.model_name_or_path,
            "data": [
                script.dataset_name,
                [vars(entry) for entry in mixture.datasets],
                training.max_length,
                training.packing,
            ],
            "lora": [model.use_peft, model.lora_r, model.lora_alpha, model.lora_target_modules],
            "lr": training.learning_rate,
            "betas": [training.adam_beta1, training.adam_beta2],
            "eps": training.adam_epsilon,
            "weight_decay": training.weight_decay,
            "warmup": training.get_warmup_steps(1000),
            "schedule": [str(training.lr_scheduler_type.value), training.lr_scheduler_kwargs or {}],
            "batch": [training.per_device_train_batch_size, training.gradient_accumulation_steps],
            "length": [training.max_steps, training.num_train_epochs],
            "max_grad_norm": training.max_grad_norm,
            "seed": training.seed,
        }
    ),
    file=sys.stderr,
)
