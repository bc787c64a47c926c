"""Run inside TRL's own environment: what the parser of `trl sft` makes of a config, as JSON."""

import json
import sys

import training_arguments
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
script, training, model, mixture = parser.parse_args_and_config(["--config", sys.argv[1]])
sets = [vars(entry) for entry in mixture.datasets]
found = {
    "model": model.model_name_or_path,
    "data": [script.dataset_name, sets, training.max_length, training.packing],
    "lora": [model.use_peft, model.lora_r, model.lora_alpha, model.lora_target_modules],
}
print(json.dumps(found | training_arguments.said(training)), file=sys.stderr)
