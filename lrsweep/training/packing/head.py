"""From hidden states to losses: the output layer, for label tokens only and in chunks of rows.

The logits of all rows never exist at once, as in Liger Kernel's fused linear cross-entropy (Hsu et al., "Liger Kernel:
Efficient Triton Kernels for LLM Training", 2024).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lrsweep.training.loss import Weighing
from lrsweep.training.packing.errors import Unpackable
from lrsweep.training.packing.functions import linear
from lrsweep.training.packing.kernels import cross_entropy, has_cross_entropy
from lrsweep.training.packing.working_copy import View


@dataclass(frozen=True)
class Head:
    """A model's output layer.

    Attributes:
        weight: The weight [V, D], or the arena's name of it if each trial has its own.
        bias: The bias [V], or the arena's name of it, or None.
        vocabulary: The size of the vocabulary V.
        softcap: The limit c of soft-capped logits, c tanh(logits / c), as in Gemma 2; None for no cap.
        one_kernel: Computes losses and gradients in one compiled kernel, where there is one.
        weigh: The weights of label tokens in the gradient; None for 1.
    """

    weight: Tensor | str
    bias: Tensor | str | None
    vocabulary: int
    softcap: float | None
    one_kernel: bool = False
    weigh: Weighing | None = None

    def cross_entropy(
        self,
        hidden: Tensor,
        targets: Tensor,
        counts: Sequence[int],
        shares: Tensor | None,
        views: Mapping[str, View],
        compute: torch.dtype,
    ) -> tuple[Tensor, Tensor | None]:
        """The loss of each of n label tokens, and the gradient of their weighted sum.

        The gradient with respect to the logits is softmax(logits) - one-hot(target), times 1 - (logits / c)^2 with a
        softcap c. The gradients of the trials' own output weights are added to the arena.

        Args:
            hidden: The hidden states [n, D], trial by trial.
            targets: The labels [n].
            counts: The number of each trial's label tokens, k of them.
            shares: The weight of each loss in the sum [n]; None for no gradient.
            views: The arena's parameters of the pass.
            compute: The dtype of the products. The softmax is computed in float32, or in float64 for float64.

        Returns:
            The losses [n], in nats and unweighted, and the gradient with respect to `hidden` [n, D], None without
            `shares`.
        """
        precise = torch.float64 if compute == torch.float64 else torch.float32
        losses = hidden.new_empty(len(hidden), dtype=precise)
        gradient = None if shares is None else torch.empty_like(hidden)
        frozen = self.weight.detach().to(compute) if isinstance(self.weight, Tensor) else None
        for trial, part in self._chunks(counts, hidden.device):
            weight = _tensor(self.weight, trial, views, compute) if frozen is None else frozen
            bias = None if self.bias is None else _tensor(self.bias, trial, views, compute)
            rows, wanted = hidden[part].to(compute), targets[part, None]
            logits = linear(rows, weight, bias)
            if gradient is None or shares is None:
                log_shares = torch.log_softmax(_capped(logits, self.softcap), dim=1, dtype=precise)
                losses[part] = -log_shares.gather(1, wanted)[:, 0]
                continue
            share = shares[part, None].to(precise)
            if self.weigh is not None:  # first, as the gradient replaces the logits
                share = share * self.weigh(_capped(logits, self.softcap).to(precise), wanted)[:, None]
            in_one = self.one_kernel and self.softcap is None
            if in_one and has_cross_entropy(logits.device, logits.dtype, self.vocabulary):
                losses[part], dlogits = cross_entropy(logits, wanted)
            else:
                losses[part], dlogits = self._losses(logits, wanted, precise)
            gradient[part] = linear(dlogits, weight.mT) * share
            if isinstance(self.weight, str):
                views[self.weight].grad[trial].add_(dlogits.mT @ (rows * share).to(compute))
            if isinstance(self.bias, str):
                views[self.bias].grad[trial].add_((dlogits * share).sum(0))
        return losses, gradient

    def _losses(self, logits: Tensor, wanted: Tensor, precise: torch.dtype) -> tuple[Tensor, Tensor]:
        """The losses [n] and their gradient with respect to the logits [n, V], which are overwritten."""
        capped = _capped(logits, self.softcap)
        log_shares = torch.log_softmax(capped, dim=1, dtype=precise)
        found = log_shares.gather(1, wanted)
        # Before it is rounded to the dtype of the products, in which a share near one would lose its digits.
        of_target = found.exp() - 1
        if self.softcap is None:
            gradient = torch.exp(log_shares, out=capped).scatter_(1, wanted, of_target.to(capped.dtype))
        else:
            log_shares.exp_().scatter_(1, wanted, of_target)
            gradient = log_shares.mul_(1 - (capped.to(precise) / self.softcap).square()).to(capped.dtype)
        return -found[:, 0], gradient

    def _chunks(self, counts: Sequence[int], device: torch.device) -> Iterator[tuple[int, slice]]:
        """The trial and rows of each chunk. If all trials use the same weights, a chunk may span trials."""
        own = isinstance(self.weight, str) or isinstance(self.bias, str)
        longest = _rows_at_once(self.vocabulary, device)
        first = 0
        for trial, count in enumerate(counts if own else [sum(counts)]):
            for start in range(first, first + count, longest):
                yield trial, slice(start, min(start + longest, first + count))
            first += count


def _rows_at_once(vocabulary: int, device: torch.device) -> int:
    """Rows of a chunk: as many as suit a CPU's caches or keep a GPU busy, and enough for an efficient product."""
    return max(128, (2**20 if device.type == "cpu" else 2**27) // vocabulary)


def find_head(model: PreTrainedModel) -> Head:
    """The model's output layer.

    Args:
        model: The model. It runs once, on 4 tokens.

    Raises:
        Unpackable: The layer is not a Linear, or the logits are not its (soft-capped) output.
    """
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear:
        raise Unpackable(f"the output layer is a {type(layer).__name__}, not a Linear")
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    head = Head(layer.weight, layer.bias, layer.out_features, softcap)
    with torch.no_grad():
        ids = torch.arange(4, device=layer.weight.device)[None]
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        expected = model(input_ids=ids, use_cache=False).logits
        logits = _capped(layer(hidden), softcap)
    # In float32 at least: with 16 bits, the comparison itself would be rounded.
    if logits.dtype != torch.float64:
        logits, expected = logits.float(), expected.float()
    if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=1e-3, atol=1e-5):
        raise Unpackable(
            f"the logits of {type(model).__name__} are not its output layer's: they are scaled or changed after it"
        )
    return head


def _tensor(weight: Tensor | str, trial: int, views: Mapping[str, View], compute: torch.dtype) -> Tensor:
    """The weight itself, or the trial's own, in the dtype of the products."""
    own = views[weight].compute[trial] if isinstance(weight, str) else weight
    return own.detach().to(compute)


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap
