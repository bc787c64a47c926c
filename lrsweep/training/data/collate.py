"""Tokenised rows: packing them into blocks, padding them into batches."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Example:
    """One row, or a block of packed rows. `labels` is as long as `input_ids`; IGNORED where nothing is learned.

    A row's first token is never a label: nothing stands before it to predict it from. `segments` holds the lengths of
    the rows in a packed block, and is empty for a row that is not packed.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    segments: tuple[int, ...] = ()


def pack(examples: Sequence[Example], max_length: int) -> list[Example]:
    """The rows in blocks of at most `max_length` tokens: longest first, each into the fullest block that has room."""
    blocks: list[list[Example]] = []
    rooms: list[tuple[int, int]] = []  # (free tokens, block), ascending
    for example in sorted(examples, key=lambda example: -len(example.input_ids)):
        length = len(example.input_ids)
        fitting = bisect.bisect_left(rooms, (length, -1))
        if fitting < len(rooms):
            free, block = rooms.pop(fitting)
            blocks[block].append(example)
        else:
            free, block = max_length, len(blocks)
            blocks.append([example])
        bisect.insort(rooms, (free - length, block))
    return [
        Example(
            input_ids=tuple(token for row in block for token in row.input_ids),
            labels=tuple(label for row in block for label in row.labels),
            segments=tuple(len(row.input_ids) for row in block),
        )
        for block in blocks
    ]


def collate(examples: Sequence[Example], pad_token_id: int) -> "dict[str, torch.Tensor]":
    """A batch padded on the right to its longest example: input_ids, labels and, each (B, T) and integer,

    - rows: attention_mask, 0 on padding;
    - packed blocks: position_ids, which start at 0 in every row. No attention_mask: transformers tells the rows of a
      block apart by position_ids only when there is neither mask nor cache, so call the model with `use_cache=False`
      (as Trainer does). Padding is one more row, which no other attends to. Holds for eager and sdpa attention; flash
      attention looks at position_ids in batches of one block only.
    """
    import torch

    longest = max(len(example.input_ids) for example in examples)
    padding = [longest - len(example.input_ids) for example in examples]

    def padded(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * pad for row, pad in zip(rows, padding, strict=True)], dtype=torch.long)

    batch = {
        "input_ids": padded([list(example.input_ids) for example in examples], pad_token_id),
        "labels": padded([list(example.labels) for example in examples], IGNORED),
    }
    if any(example.segments for example in examples):
        lengths = [
            (*(example.segments or (len(example.input_ids),)), pad)
            for example, pad in zip(examples, padding, strict=True)
        ]
        positions = [[position for length in row for position in range(length)] for row in lengths]
        batch["position_ids"] = torch.tensor(positions, dtype=torch.long)
    else:
        batch["attention_mask"] = padded([[1] * len(example.input_ids) for example in examples], 0)
    return batch
