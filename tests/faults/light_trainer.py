"""A trainer that trains nothing: it writes the log of a run whose loss depends on its learning rate. No torch, no time.

`python light_trainer.py FILE [SECONDS a step]`; steps and evaluations are those that the file says. If another one is
at work in its folder, it leaves a file `two` there.
"""

import fcntl
import json
import math
import sys
import time
from pathlib import Path

import yaml


def main() -> None:
    arguments = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    pause = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    folder = Path(arguments["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    alone = (folder / "alone").open("w")
    try:
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        (folder / "two").touch()
    floor = 1 + abs(math.log10(arguments["learning_rate"]) + 3)
    steps = arguments["max_steps"]
    with (folder / "trainer_log.jsonl").open("a") as log:
        for step in range(1, steps + 1):
            row = {
                "current_steps": step,
                "total_steps": steps,
                "loss": floor + 1 / step,
                "lr": arguments["learning_rate"],
            }
            if step % arguments["eval_steps"] == 0:
                row["eval_loss"] = floor + 1 / step
            log.write(json.dumps(row) + "\n")
            log.flush()
            time.sleep(pause)


if __name__ == "__main__":
    main()
