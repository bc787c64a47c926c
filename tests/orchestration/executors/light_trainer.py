"""A trainer that computes nothing: `python light_trainer.py FILE SECONDS`, FILE with TrainingArguments, SECONDS a step.

Its losses have their minimum at a learning rate of 1e-3 and a weight decay of 0; it logs as LLaMA-Factory does. The
lines of `begun`, next to its log, count how often a trial has been started.
"""

import json
import math
import sys
import time
from pathlib import Path

import yaml


def main() -> None:
    arguments = yaml.safe_load(Path(sys.argv[1]).read_text())
    pause = float(sys.argv[2])
    lr = float(arguments["learning_rate"])
    away = (math.log10(lr) + 3) ** 2 + float(arguments["weight_decay"])
    steps, every = int(arguments["max_steps"]), int(arguments["eval_steps"])
    folder = Path(arguments["output_dir"])
    with (folder / "begun").open("a") as begun:
        begun.write(f"{lr}\n")
    for step in range(1, steps + 1):
        time.sleep(pause)
        row = {"current_steps": step, "loss": 4.0 - step / steps + away}
        if step % every == 0:
            row["eval_loss"] = 4.1 - step / steps + away
        with (folder / "trainer_log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
