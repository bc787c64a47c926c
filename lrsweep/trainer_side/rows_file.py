"""Writes tokenised rows as Parquet, and how the tokenizer writes a sample, so that lrsweep can compare it with its own.

pyarrow is there in every trainer's environment, because `datasets` needs it.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# The text whose tokens are compared.
_SAMPLE = "The 3 quick foxes:\n\tdon't jump, naïvely. 狐狸"
_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
_CHUNK = 1000


def write(file: Path, rows: Iterable[tuple[list[int], list[int]]]) -> None:
    """Writes rows, a chunk at a time.

    Args:
        file: The Parquet file.
        rows: Each row's tokens and labels, -100 where nothing is learned.
    """
    with pq.ParquetWriter(file, _SCHEMA) as writer:
        for chunk in _chunks(rows):
            columns = [[row[column] for row in chunk] for column in range(2)]
            writer.write_table(pa.table(dict(zip(_SCHEMA.names, columns, strict=True)), schema=_SCHEMA))


def write_sample(folder: Path, tokenizer: Any) -> None:
    """Writes a sample text and its tokens to `sample.json`."""
    ids = tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]
    (folder / "sample.json").write_text(json.dumps({"text": _SAMPLE, "ids": list(ids)}))


def _chunks(rows: Iterable[tuple[list[int], list[int]]]) -> Iterator[list[tuple[list[int], list[int]]]]:
    left = iter(rows)
    while chunk := list(islice(left, _CHUNK)):
        yield chunk
