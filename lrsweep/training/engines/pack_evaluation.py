"""The trials of a pack on the eval set, in passes that fit in memory."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from lrsweep.files.row_losses import RowLosses
from lrsweep.training.engines.pack_loader import LoadedPack
from lrsweep.training.out_of_memory import is_out_of_memory
from lrsweep.training.packing import eval_pass, join, runs

log = logging.getLogger(__name__)


class PackEvaluation:
    """Evaluates slots of a pack.

    Args:
        loaded: The pack.
    """

    def __init__(self, loaded: LoadedPack) -> None:
        self._loaded = loaded
        # Trials in one pass: fewer once it has run out of memory.
        self._at_most = loaded.pack.arena.slots

    @torch.no_grad()
    def row_losses(self, slots: Sequence[int], rows: int) -> dict[int, RowLosses]:
        """Each trial's losses on the eval rows, by slot. Halves the passes when out of memory.

        Args:
            slots: The slots, ascending.
            rows: The rows that a pass may have.
        """
        while True:
            batch_size = len(self._loaded.eval_batches[0]["input_ids"])
            size = max(1, min(rows // batch_size, self._at_most))
            try:
                return self._row_losses(slots, size)
            except RuntimeError as fault:
                if size == 1 or not is_out_of_memory(fault):
                    raise
                self._at_most = size // 2
                reason = str(fault).splitlines()[0]
                log.warning("out of GPU memory in evaluation (%s): %d trials a pass", reason, self._at_most)

    def _row_losses(self, slots: Sequence[int], size: int) -> dict[int, RowLosses]:
        sums: dict[int, list[Tensor]] = {slot: [] for slot in slots}
        tokens: list[int] = []
        for batch in self._loaded.eval_batches:
            tokens += (batch["labels"][:, 1:] != -100).sum(1).tolist()
            for start, stop in runs(slots, size):
                joined = join([batch] * (stop - start), self._loaded.multiple)
                losses, _ = eval_pass(self._loaded.pack, start, stop, joined)
                for slot, of_rows in zip(range(start, stop), losses, strict=True):
                    sums[slot].append(of_rows)
        return {slot: RowLosses(torch.cat(of_rows).tolist(), tokens) for slot, of_rows in sums.items()}
