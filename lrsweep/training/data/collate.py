"""Tokenised rows: packed into blocks, and padded into batches."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised row, or a block of packed rows.

    Attributes:
        input_ids: The tokens, T of them.
        labels: The labels, T of them: the token itself where it is learned, else IGNORED. A row's first token is never
            learned, because there is nothing to predict it from.
        segments: The lengths of the rows in a packed block; empty for a row that is not packed.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    segments: tuple[int, ...] = ()


def pack(examples: Sequence[Example], max_length: int) -> list[Example]:
    """Packs rows into blocks of at most `max_length` tokens: best-fit decreasing bin packing.

    Rows are placed from the longest to the shortest, each into the fullest block that has room.

    Args:
        examples: Rows of at most `max_length` tokens, not packed.
        max_length: The most tokens of a block.
    """
    blocks: list[list[Example]] = []
    free_space: list[tuple[int, int]] = []  # (free tokens, block), ascending
    for example in sorted(examples, key=lambda example: -len(example.input_ids)):
        length = len(example.input_ids)
        fitting = bisect.bisect_left(free_space, (length, -1))
        if fitting < len(free_space):
            free, block = free_space.pop(fitting)
            blocks[block].append(example)
        else:
            free, block = max_length, len(blocks)
            blocks.append([example])
        bisect.insort(free_space, (free - length, block))
    return [
        Example(
            input_ids=tuple(token for row in block for token in row.input_ids),
            labels=tuple(label for row in block for label in row.labels),
            segments=tuple(len(row.input_ids) for row in block),
        )
        for block in blocks
    ]


def collate(examples: Sequence[Example], pad_token_id: int) -> "dict[str, torch.Tensor]":
    """A batch of examples, padded on the right to the longest.

    Call the model with `use_cache=False` (as Trainer does) for packed blocks: transformers separates the rows of a
    block by position_ids only without a mask and a cache. Padding is then one more row, which no other row attends to.
    This is right for eager and sdpa attention; flash attention uses position_ids in batches of one block only.

    Args:
        examples: B rows or packed blocks.
        pad_token_id: The token that pads input_ids.

    Returns:
        `input_ids` and `labels`, and for rows `attention_mask` (0 on padding), or for packed blocks `position_ids`
        (starting at 0 in every row of a block); each an int64 tensor [B, T].
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
