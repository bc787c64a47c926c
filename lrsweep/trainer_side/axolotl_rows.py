"""Has Axolotl read and tokenise the rows of a config, as `axolotl preprocess` does."""

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# Read when Axolotl is imported. The first keeps it from reporting the run to its makers.
os.environ.update(AXOLOTL_DO_NOT_TRACK="1", AXOLOTL_IS_PREPROCESS="1")

from axolotl.cli.config import load_cfg
from axolotl.loaders import load_tokenizer
from axolotl.utils.data import prepare_datasets, sft
from rows_file import write, write_sample

# What Axolotl makes of a row of text. `prompt_ids` and the like are for other kinds of training.
_KEYS = {"input_ids", "labels", "attention_mask", "position_ids", "token_type_ids", "length"}
# What its schema asks for, and rows do not depend on.
_REST = {"learning_rate": 1e-4, "micro_batch_size": 1, "gradient_accumulation_steps": 1, "num_epochs": 1, "bf16": False}


def _tokens(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[list[int], list[int]]]:
    for row in rows:
        if others := set(row) - _KEYS:
            sys.exit(f"rows have {', '.join(sorted(others))} beside their tokens; trials learn from text alone")
        yield list(row["input_ids"]), list(row["labels"])


def main(config: str, folder: str) -> None:
    """Writes `train.parquet`, `eval.parquet` if the config has rows to evaluate on, and the tokenizer's sample.

    Args:
        config: A JSON file of Axolotl's keys of model, data and tokenizer.
        folder: Where to write.
    """
    place = Path(folder)
    with tempfile.TemporaryDirectory(dir=place) as own:
        run = Path(own, "axolotl.yml")  # JSON is YAML too
        given = json.loads(Path(config).read_text())
        run.write_text(json.dumps({**given, **_REST, "output_dir": own, "dataset_prepared_path": f"{own}/rows"}))
        # Without a GPU, Axolotl takes a config only for preprocessing.
        cfg = load_cfg(str(run), is_preprocess=True)
        tokenizer = load_tokenizer(cfg)
        sft.save_preprocessed_dataset = lambda *given: None  # the rows are written below
        train, evaluation, _, _ = prepare_datasets(cfg, tokenizer)
        for name, rows in (("train", train), ("eval", evaluation)):
            if rows is not None:
                if not len(rows):
                    sys.exit(f"no row to {name} on is left within sequence_len={cfg.sequence_len}")
                write(place / f"{name}.parquet", _tokens(rows))
        write_sample(place, tokenizer)


if __name__ == "__main__":
    main(*sys.argv[1:])
