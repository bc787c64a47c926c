"""Sweeps a real model: `python benchmarks/smollm2.py --wordnet DIR`, about twenty minutes.

SmolLM2-135M-Instruct learns glosses of words with LoRA, 40 steps of batch 4 each: seven learning rates to start with,
search=refine and search.replicates=auto. The weights are those of model=smollm2_135m; Debian's package wordnet-base
holds the rows, in /usr/share/wordnet. Checks what a person sees in the curves: the best and all that is as good lie
from 1e-3 to 3e-3, the safe range between 3e-4 and 1e-2. Writes `results/smollm2.json`.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import RESULTS, about, save, table

LRS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
ROWS = 2700


def write_rows(wordnet: Path, file: Path) -> None:
    """Writes nouns and their glosses as alpaca rows, the same ones each time."""
    found = []
    for line in (wordnet / "data.noun").read_text(encoding="utf-8").splitlines():
        head, bar, gloss = line.partition(" | ")
        if not bar or head.startswith(" "):
            continue
        word = head.split()[4].replace("_", " ")
        text = gloss.split(";")[0].strip()
        if word.isascii() and 20 <= len(text) <= 160:
            found.append({"instruction": f"What does the word '{word}' mean?", "input": "", "output": text})
    file.write_text(json.dumps(random.Random(0).sample(found, ROWS)))


def sweep(folder: Path, rows: Path, engine: str) -> float:
    """Runs the sweep in `folder` with an engine; returns its seconds."""
    started = time.monotonic()
    subprocess.run(
        [
            sys.executable, "-m", "lrsweep", "+sweep=lora_lr", "name=smollm2", "model=smollm2_135m",
            "data=local", f"data.path={rows}", "data.format=alpaca", "data.max_length=96", "data.max_eval_rows=64",
            "training=short", "training.max_steps=40", "training.batch_size=4", "training.eval_every=10",
            f"space.optimizer.lr={list(LRS)}", "tracking=none", "resume=fresh",
            f"engine={engine}",
        ],
        cwd=folder,
        check=True,
    )  # fmt: skip
    return time.monotonic() - started


def checks(summary: dict[str, Any]) -> dict[str, bool]:
    """Returns what a person sees in the curves, and whether the verdict says it."""
    lr = {trial["number"]: trial["config"].get("optimizer.lr", 1e-4) for trial in summary["trials"]}
    safe = summary["best"]["safe_lr"]
    return {
        "the best is from 1e-3 to 3e-3": 1e-3 <= lr[summary["best"]["trial"]] <= 3e-3,
        "all that is tied is from 1e-3 to 3e-3": all(1e-3 <= lr[number] <= 3e-3 for number in summary["ties"]),
        "noise was measured": summary["noise"] is not None,
        "the safe range lies between 3e-4 and 1e-2": safe is not None and safe[0] > 3e-4 and safe[1] < 1e-2,
        "conclusive": not summary["inconclusive"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--folder", type=Path, default=Path(".tmp/smollm2"), help="where to write rows and sweep")
    parser.add_argument("--engine", default="auto", choices=("auto", "packed", "trainer"))
    parser.add_argument("--out", type=Path, default=RESULTS / "smollm2.json")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # On a machine without WordNet, the rows may have been brought.
    if not (folder / "rows.json").exists():
        write_rows(arguments.wordnet, folder / "rows.json")
    seconds = sweep(folder, folder / "rows.json", arguments.engine)
    summary = json.loads((folder / "outputs/smollm2/summary.json").read_text())
    trials = [
        {
            "trial": trial["number"],
            "lr": trial["config"].get("optimizer.lr", 1e-4),
            "role": trial["role"],
            "seed": trial["config"].get("training.seed", 0),
            "status": trial["status"],
            "eval_loss": trial["eval_loss"],
            "diagnosis": trial["diagnosis"]["label"],
        }
        for trial in summary["trials"]
    ]
    print(table(list(trials[0]), [list(trial.values()) for trial in trials]))
    found = checks(summary)
    for what, right in found.items():
        print(f"{what}: {'yes' if right else 'NO'}")
    known = {key: summary[key] for key in ("best", "ties", "rivals", "noise", "row_noise", "improvement", "base_loss")}
    known |= {"checks": found, "seconds": round(seconds)}
    save(arguments.out, about("torch", "transformers", "peft") | known, trials=trials)
    sys.exit(not all(found.values()))


if __name__ == "__main__":
    main()
