"""Which rows a trial sees when: stock Trainer's own order, from the trial's seed alone."""

from collections.abc import Iterator

import torch


def row_order(rows: int, batch_size: int, accumulation: int, seed: int) -> Iterator[list[list[int]]]:
    """For each optimizer step, the row numbers of its batches; without end.

    Every epoch is a new permutation, seeded as accelerate's SeedableRandomSampler seeds it. Its last batch may be short,
    and its last step may have fewer batches, as in Trainer.
    """
    generator = torch.Generator()
    epoch = 0
    while True:
        order = torch.randperm(rows, generator=generator.manual_seed(seed + epoch)).tolist()
        batches = [order[start : start + batch_size] for start in range(0, rows, batch_size)]
        for start in range(0, len(batches), accumulation):
            yield batches[start : start + accumulation]
        epoch += 1
