"""Training passes as CUDA graphs: all launches of the decoder, recorded once for each shape and then repeated as one.

A pass of a small model is about two thousand launches, and the host takes longer for them than the GPU for its work. A
graph repeats the launches with the same addresses, so rows are padded to few shapes, and what has other shapes from
pass to pass (the output layer at the labels) stays outside.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lrsweep.training.out_of_memory import is_out_of_memory
from lrsweep.training.packing.forward_backward import IGNORED, Decoder, autocast, pads_right, train_pass
from lrsweep.training.packing.pack import Pack
from lrsweep.training.packing.unpadded import causal_only

log = logging.getLogger(__name__)

# Rows are padded to a multiple of this many tokens.
_MULTIPLE = 64
# A shape is recorded when it comes for this time: recording costs about eight passes.
_SEEN = 3
# Shapes that are tried at most: each keeps its outputs in memory.
_MOST = 32
# Seconds of a pass that arithmetic takes up, whatever the host does: it is not recorded.
_LONG = 0.3
# A graph is used if a pass takes at most this share of the time without it.
_FASTER = 0.9

Shape = tuple[int, int, int, int]
Record = Callable[[Pack, int, int, Tensor], Decoder]


class PassRunner(Protocol):
    """How a pack's training passes are run."""

    def train(self, start: int, stop: int, batch: Mapping[str, Tensor], tokens: Sequence[int] | None = None) -> Tensor:
        """A training pass: see `train_pass`."""

    def forget(self) -> None:
        """Gives back all memory that is kept between passes."""


class EagerRunner:
    """Runs passes as they are.

    Args:
        pack: The pack.
    """

    def __init__(self, pack: Pack) -> None:
        self._pack = pack

    def train(self, start: int, stop: int, batch: Mapping[str, Tensor], tokens: Sequence[int] | None = None) -> Tensor:
        """A training pass: see `train_pass`."""
        return train_pass(self._pack, start, stop, batch, tokens)

    def forget(self) -> None:
        """Nothing is kept."""


class GraphRunner:
    """Runs passes as CUDA graphs, where a graph is faster and gives the same numbers up to rounding.

    A shape's graph is tried beside the pass without it. What has no graph runs as it is: the first passes of a shape,
    passes with dropout, and rows that need more than a causal mask.

    Args:
        pack: A pack of adapters.
        record: Records the decoder for a shape.
    """

    def __init__(self, pack: Pack, record: Record | None = None) -> None:
        self._pack = pack
        self._record = record or Recorder()
        self._seen: Counter[Shape] = Counter()
        # None for a shape whose graph did not prove itself.
        self._graphs: dict[Shape, Decoder | None] = {}

    @property
    def recorded(self) -> int:
        """The number of shapes that have a graph."""
        return sum(graph is not None for graph in self._graphs.values())

    def train(self, start: int, stop: int, batch: Mapping[str, Tensor], tokens: Sequence[int] | None = None) -> Tensor:
        """A training pass: see `train_pass`."""
        padded = self._padded(start, stop, batch)
        if padded is None:
            return train_pass(self._pack, start, stop, batch, tokens)
        rows, length = padded["input_ids"].shape
        shape = start, stop, rows, length
        self._seen[shape] += 1
        if shape not in self._graphs and self._seen[shape] >= _SEEN and len(self._graphs) < _MOST:
            return self._try(shape, batch, padded, tokens)
        graph = self._graphs.get(shape)
        if graph is None:
            return train_pass(self._pack, start, stop, batch, tokens)
        return train_pass(self._pack, start, stop, padded, tokens, graph)

    def forget(self) -> None:
        """Gives back the memory of all graphs."""
        self._graphs.clear()
        self._seen.clear()

    def _padded(self, start: int, stop: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The batch with rows of one of few lengths; None if it cannot be run as a graph."""
        mask, ids = batch.get("attention_mask"), batch["input_ids"]
        missing = -ids.shape[1] % _MULTIPLE
        plain = batch.keys() <= {"input_ids", "labels", "attention_mask"} and (mask is None or pads_right(mask))
        if not plain or ids.shape[1] + missing > self._pack.maskless or self._pack.context.will_drop(start, stop):
            return None
        return {
            key: F.pad(batch[key], (0, missing), value=IGNORED if key == "labels" else 0)
            for key in ("input_ids", "labels")
        }

    def _try(
        self, shape: Shape, batch: Mapping[str, Tensor], padded: Mapping[str, Tensor], tokens: Sequence[int] | None
    ) -> Tensor:
        """A pass without a graph, and the same with one: keeps the graph if it is faster and right."""
        pack, (start, stop, *_) = self._pack, shape
        grads = pack.arena.grads[start:stop]
        self._graphs[shape] = None
        try:
            before, wanted = grads.clone(), torch.empty_like(grads)
        except RuntimeError as fault:
            if not is_out_of_memory(fault):
                raise
            return train_pass(pack, start, stop, batch, tokens)
        losses, seconds = _timed(lambda: train_pass(pack, start, stop, batch, tokens))
        if seconds > _LONG:
            return losses
        wanted.copy_(grads)
        progress = pack.context.progress()
        try:
            graph = self._record(pack, start, stop, padded["input_ids"])

            def run() -> Tensor:
                grads.copy_(before)
                return train_pass(pack, start, stop, padded, tokens, graph)

            run()
            found, seconds_of_graph = _timed(run)
            gradients = (map(torch.sub, passed, before) for passed in (grads, wanted))
            apart = max(_apart(found, losses), _apart(*gradients))
            # The root of its precision, as for other replacements: bf16's is 0.09.
            right = apart < torch.finfo(pack.arena.compute_dtype).eps ** 0.5
            if right and seconds_of_graph < _FASTER * seconds:
                self._graphs[shape] = graph
            log.info(
                "a pass of shape %s takes %.4f s, and %.4f s as a CUDA graph; gradients are %.1e apart",
                shape, seconds, seconds_of_graph, apart,
            )  # fmt: skip
        except Exception as fault:  # what a model does may not be recordable, in ways that only its own code knows
            log.info("passes of shape %s are not recorded: %s", shape, (str(fault).splitlines() or [""])[0])
            _finish()  # raises if the device is lost
        grads.copy_(wanted)
        pack.context.rewind(progress)
        return losses


class Recorder:
    """Records decoders as CUDA graphs, in one pool of memory."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, pack: Pack, start: int, stop: int, ids: Tensor) -> Decoder:
        """Records the decoder, forward and backward, for the slots start..stop and rows like these.

        It leaves other gradients in these slots.

        Args:
            pack: The pack.
            start: The first slot.
            stop: The slot after the last one.
            ids: Rows [k*B, T].

        Returns:
            A function from rows of that shape, on the device, to their hidden states.
        """
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        device = pack.arena.weights.device
        pack.context.select(start, stop, *ids.shape, training=True)
        embed, decoder, mask = pack.model.get_input_embeddings(), pack.model.get_decoder(), causal_only(device)

        def states(embedded: Tensor) -> Tensor:
            found: Tensor = decoder(inputs_embeds=embedded, attention_mask=mask, use_cache=False).last_hidden_state
            return found

        # Torch warns of leaves that were used on the recording's stream. Here autograd has no gradient for leaves: the
        # layers add it to the arena.
        warn = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", lambda _: None)
        warn(False)
        # Only the path to an input that needs a gradient is recorded backward.
        sample = embed(ids.to(device)).detach().requires_grad_()
        with autocast(pack):
            recorded: Any = torch.cuda.make_graphed_callables(states, (sample,), pool=self._pool)

        def run(ids: Tensor) -> Tensor:
            found: Tensor = recorded(embed(ids).detach().requires_grad_())
            return found

        return run


def _timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What it returns, and its seconds on the device."""
    _finish()
    begun = time.perf_counter()
    found = run()
    _finish()
    return found, time.perf_counter() - begun


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _apart(found: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """The worst relative difference of trials' vectors; one that has diverged, or has no labels, tells nothing."""
    worst = []
    for mine, theirs in zip(found, wanted, strict=True):
        size = torch.linalg.vector_norm(theirs, dtype=torch.float64)
        if size.isfinite() and size > 0:
            error = torch.linalg.vector_norm(mine - theirs, dtype=torch.float64)
            worst.append(float((error / size).nan_to_num(torch.inf)))
    return max(worst, default=float("inf"))
