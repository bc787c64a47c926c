"""Somebody's training script: transformers' Trainer on the embedded model, its arguments from a YAML file.

`python a_trainer.py FILE [--sleep SECONDS] [--fail-above LR]`. It writes trainer_log.jsonl as it trains, as
LLaMA-Factory does.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import distributed
from transformers import (
    HfArgumentParser,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.training.data.loading import collate
from lrsweep.training.inputs import inputs
from lrsweep.training.model import load_model, make_trainable
from tests.recorder import TINY


class Log(TrainerCallback):
    """LLaMA-Factory's log, under its own names."""

    def __init__(self, folder: str, pause: float) -> None:
        self._path = Path(folder) / "trainer_log.jsonl"
        self._pause = pause

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float],
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        row = {
            "current_steps": state.global_step,
            "total_steps": state.max_steps,
            "loss": logs.get("loss"),
            "eval_loss": logs.get("eval_loss"),
            "lr": logs.get("learning_rate"),
        }
        with self._path.open("a") as file:
            file.write(json.dumps({key: value for key, value in row.items() if value is not None}) + "\n")
        time.sleep(self._pause)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--fail-above", type=float, default=1e9)
    own = parser.parse_args()
    (arguments,) = HfArgumentParser(TrainingArguments).parse_yaml_file(own.file)
    if arguments.learning_rate > own.fail_above:
        sys.exit("ValueError: that rate is too high for me")
    arguments.remove_unused_columns, arguments.label_names = False, ["labels"]
    config = sweep_config([*TINY, f"training.seed={arguments.seed}"])
    tokenizer, data = inputs(config.model, config.data)
    Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        model=make_trainable(load_model(config.model, config.finetune), config.finetune, arguments.seed),
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        data_collator=functools.partial(collate, pad_token_id=tokenizer.pad_token_id),
        callbacks=[Log(arguments.output_dir, own.sleep)],
    )
    trainer.remove_callback(PrinterCallback)
    if distributed.is_initialized():
        (Path(arguments.output_dir) / f"rank{distributed.get_rank()}").write_text(f"of {distributed.get_world_size()}")
    trainer.train()
    trainer.save_state()


if __name__ == "__main__":
    main()
