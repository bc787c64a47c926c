"""Run inside LLaMA-Factory's own environment: what its parser makes of a config, as JSON."""

import json
import sys

from llamafactory.hparams import get_train_args

model, data, training, finetuning, _ = get_train_args()
print(
    json.dumps(
        {
            "model": model.model_name_or_path,
            "data": [data.dataset, data.dataset_dir, data.template, data.cutoff_len, data.max_samples, data.val_size],
            "lora": [finetuning.finetuning_type, finetuning.lora_rank, finetuning.lora_alpha, finetuning.lora_target],
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
