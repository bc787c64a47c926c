"""Has ms-swift read and tokenise the rows of a config, as `swift export --to_cached_dataset` does.

That command keeps the rows as text, with their lengths. `swift sft` tokenises them while it trains, and so does this.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rows_file import write, write_sample
from swift.pipelines.export.cached_dataset import ExportCachedDataset

# What ms-swift makes of a row of text.
_KEYS = {"input_ids", "labels", "loss_scale", "length", "lengths"}


def _arguments(config: dict[str, Any], folder: Path) -> list[str]:
    """The config as ms-swift's command line takes it."""
    given = {**config, "to_cached_dataset": True, "output_dir": str(folder / "swift"), "exist_ok": True}
    line = []
    for name, value in given.items():
        values = value if isinstance(value, list) else [value]
        line += [f"--{name}", *(part if isinstance(part, str) else json.dumps(part) for part in values)]
    return line


def _encoded(rows: Iterable[dict[str, Any]], template: Any) -> Iterator[tuple[list[int], list[int]]]:
    for row in rows:
        whole = template.encode(dict(row))
        for part in whole if isinstance(whole, list) else [whole]:
            if others := {name for name, value in part.items() if value is not None} - _KEYS:
                sys.exit(f"rows have {', '.join(sorted(others))} beside their tokens; trials learn from text alone")
            weights = part.get("loss_scale")
            if weights is not None and not set(weights) <= {0, 1}:
                sys.exit(f"loss_scale: tokens have the weights {sorted(set(weights))}; trials learn each token alike")
            labels = part["labels"]
            if weights is not None:
                labels = [label if weight else -100 for label, weight in zip(labels, weights, strict=True)]
            yield list(part["input_ids"]), list(labels)


def main(config: str, folder: str) -> None:
    """Writes `train.parquet`, `eval.parquet` if the config holds rows out, and the tokenizer's sample.

    Args:
        config: A JSON file of ms-swift's keys of model, data and template.
        folder: Where to write.
    """
    place = Path(folder)
    given = json.loads(Path(config).read_text())
    export = ExportCachedDataset(_arguments(given, place))
    export._show_dataset = lambda *sets: None  # it fails where no row is left
    train, evaluation = export._prepare_dataset()
    for rows, keys in ((train, ("dataset", "cached_dataset")), (evaluation, ("val_dataset", "cached_val_dataset"))):
        if rows is None and any(given.get(key) for key in keys):
            sys.exit(f"{keys[0]}: no row of it is left within max_length={given.get('max_length')}")
    for name, rows in (("train", train), ("eval", evaluation)):
        if rows is not None:
            write(place / f"{name}.parquet", _encoded(rows, export.template))
    write_sample(place, export.template.tokenizer)


if __name__ == "__main__":
    main(*sys.argv[1:])
