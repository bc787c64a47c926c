"""Modules that replace those of a converted model, with weights for each trial.

The k*B rows of their input go trial by trial, with the same B for each trial.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrsweep.training.packing.functions import adapted_linear, add_adapter, parameter, trial_linear
from lrsweep.training.packing.pass_context import PassContext


class LoraLinear(nn.Module):
    """A frozen base layer, shared by all trials, with an adapter for each trial.

    A plain Linear or Conv1D in the adapters' dtype takes a faster path than other base layers.

    Args:
        base: The base layer.
        context: The context of the passes.
        a: The arena's name of A [R, in].
        b: The arena's name of B [out, R].
    """

    def __init__(self, base: nn.Module, context: PassContext, a: str, b: str) -> None:
        super().__init__()
        self.base = base
        self._context = context
        self._a, self._b = a, b
        self._layer = context.layer()
        # By exact type: subclasses (4-bit, 8-bit) compute differently.
        self._plain: tuple[Tensor, Tensor | None] | None = None
        if type(base) is nn.Linear:
            self._plain = base.weight, base.bias
        elif type(base) is Conv1D:
            self._plain = base.get_parameter("weight").mT, base.get_parameter("bias")

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output [k*B, T, out] for x [k*B, T, in]."""
        context = self._context
        context.check(x)
        a, b = context.views[self._a], context.views[self._b]
        if self._plain is not None and not context.drops:
            weight, bias = self._plain
            if x.dtype == weight.dtype == a.compute.dtype:
                return adapted_linear(x, weight, bias, a, b, context.scaling)
        return add_adapter(self.base(x), context.drop(self._layer, x), a, b, context.scaling)


class TrialLinear(nn.Module):
    """A Linear or Conv1D with weights for each trial.

    Args:
        context: The context of the passes.
        weight: The arena's name of the weight [out, in].
        bias: The arena's name of the bias [out], or None.
        transposed: The weight is [in, out], as Conv1D has it.
    """

    def __init__(self, context: PassContext, weight: str, bias: str | None, *, transposed: bool = False) -> None:
        super().__init__()
        self._context = context
        self._weight, self._bias = weight, bias
        self._transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output [k*B, T, out] for x [k*B, T, in]."""
        self._context.check(x)
        views = self._context.views
        weight = views[self._weight]
        if self._transposed:
            weight = type(weight)(weight.weight.mT, weight.compute.mT, weight.grad.mT)
        return trial_linear(x, weight, None if self._bias is None else views[self._bias])


class TrialEmbedding(nn.Module):
    """An embedding with a table for each trial. The model's own class does the lookup, so its scaling is kept.

    Args:
        original: The model's embedding; its weight is removed.
        context: The context of the passes.
        weight: The arena's name of the table [V, D].
    """

    def __init__(self, original: nn.Embedding, context: PassContext, weight: str) -> None:
        super().__init__()
        self._original = original
        self._context = context
        self._weight = weight
        del original._parameters["weight"]

    def forward(self, ids: Tensor) -> Tensor:
        """The embeddings [k*B, T, D] of ids [k*B, T], or of the same ids [1, T] in all rows."""
        context = self._context
        if ids.shape[0] == 1:  # positions, the same for all rows
            ids = ids.expand(context.rows, -1)
        tables = parameter(context.views[self._weight])
        chunks = ids.chunk(context.stop - context.start)
        found = [_with_weight(self._original, table, chunk) for table, chunk in zip(tables, chunks, strict=True)]
        return torch.cat(found)


class TrialNorm(nn.Module):
    """A norm with a weight for each trial, computed by the model's own module, which must take a broadcast weight.

    Args:
        original: The model's norm; its weight is removed.
        context: The context of the passes.
        weight: The arena's name of the weight [D].
    """

    def __init__(self, original: nn.Module, context: PassContext, weight: str) -> None:
        super().__init__()
        self._original = original
        self._context = context
        self._weight = weight
        del original._parameters["weight"]

    def forward(self, x: Tensor) -> Tensor:
        """The norm of x [k*B, ..., D]."""
        weight = parameter(self._context.views[self._weight])
        k, dim = weight.shape
        by_trial = x.reshape(k, -1, *x.shape[1:])
        return _with_weight(self._original, weight.view(k, *[1] * (x.dim() - 1), dim), by_trial).flatten(0, 1)


class TrialLayerNorm(nn.Module):
    """torch's LayerNorm with a weight and bias for each trial; torch's own takes only one of each.

    Args:
        original: The model's LayerNorm.
        context: The context of the passes.
        weight: The arena's name of the weight [D].
        bias: The arena's name of the bias [D], or None.
    """

    def __init__(self, original: nn.LayerNorm, context: PassContext, weight: str, bias: str | None) -> None:
        super().__init__()
        self._shape, self._eps = original.normalized_shape, original.eps
        self._context = context
        self._weight, self._bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """The norm of x [k*B, ..., D]."""
        views = self._context.views
        weight = parameter(views[self._weight])
        k, dim = weight.shape
        shape = (k, *[1] * (x.dim() - 1), dim)
        y = F.layer_norm(x, self._shape, eps=self._eps).view(k, -1, *x.shape[1:]) * weight.view(shape)
        if self._bias is not None:
            y = y + parameter(views[self._bias]).view(shape)
        return y.flatten(0, 1)


def _with_weight(module: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """The module's output with another weight."""
    # Module's own setter refuses a tensor in place of a Parameter, but its forward finds one in its `__dict__`.
    vars(module)["weight"] = weight
    try:
        y: Tensor = module(x)
    finally:
        del vars(module)["weight"]
    return y
