"""Run inside LLaMA-Factory's own environment: what its parser makes of a config, as JSON."""

import json
import sys

import training_arguments
from llamafactory.hparams import get_train_args

model, data, training, finetuning, _ = get_train_args()
found = {
    "model": model.model_name_or_path,
    "data": [data.dataset, data.dataset_dir, data.template, data.cutoff_len, data.max_samples, data.val_size],
    "lora": [finetuning.finetuning_type, finetuning.lora_rank, finetuning.lora_alpha, finetuning.lora_target],
    "start": [finetuning.pissa_init, finetuning.pissa_iter, finetuning.loraplus_lr_ratio],
}
print(json.dumps(found | training_arguments.said(training)), file=sys.stderr)
