"""The order in which a trial sees its rows: that of transformers' Trainer, from the trial's seed alone."""

from collections.abc import Iterator

import torch


def row_batches(rows: int, batch_size: int, accumulation: int, seed: int) -> Iterator[list[list[int]]]:
    """The row numbers of each optimizer step's batches, without end.

    Every epoch is a new permutation, seeded as accelerate's SeedableRandomSampler seeds it. Its last batch may be
    short, and its last step may have fewer batches, as in Trainer.

    Args:
        rows: Rows of the training set.
        batch_size: Rows of a batch.
        accumulation: Batches of an optimizer step.
        seed: The trial's seed.

    Yields:
        For each optimizer step, its batches as lists of row numbers.
    """
    generator = torch.Generator()
    epoch = 0
    while True:
        permutation = torch.randperm(rows, generator=generator.manual_seed(seed + epoch)).tolist()
        batches = [permutation[start : start + batch_size] for start in range(0, rows, batch_size)]
        for start in range(0, len(batches), accumulation):
            yield batches[start : start + accumulation]
        epoch += 1
