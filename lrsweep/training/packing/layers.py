"""Modules that stand in a converted model for its own: the rows of their input belong to trials, and so do their weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrsweep.training.packing.functions import adapted_linear, add_adapter, parameter, trial_linear
from lrsweep.training.packing.pass_context import PassContext


class LoraLinear(nn.Module):
    """A frozen base layer, shared, and an adapter per trial.

    The base may be any layer; a plain Linear or Conv1D of the adapters' dtype takes the faster way.
    """

    def __init__(self, base: nn.Module, context: PassContext, a: str, b: str) -> None:
        super().__init__()
        self.base = base
        self._context = context
        self._a, self._b = a, b
        self._layer = context.layer()
        # By exact type: subclasses (4-bit, 8-bit) compute otherwise.
        self._plain: tuple[Tensor, Tensor | None] | None = None
        if type(base) is nn.Linear:
            self._plain = base.weight, base.bias
        elif type(base) is Conv1D:
            self._plain = base.get_parameter("weight").mT, base.get_parameter("bias")

    def forward(self, x: Tensor) -> Tensor:
        context = self._context
        context.check(x)
        a, b = context.views[self._a], context.views[self._b]
        if self._plain is not None and not context.drops:
            weight, bias = self._plain
            if x.dtype == weight.dtype == a.compute.dtype:
                return adapted_linear(x, weight, bias, a, b, context.scaling)
        return add_adapter(self.base(x), context.drop(self._layer, x), a, b, context.scaling)


class TrialLinear(nn.Module):
    """A Linear (or, `transposed`, a Conv1D) with weights of its own per trial."""

    def __init__(self, context: PassContext, weight: str, bias: str | None, *, transposed: bool = False) -> None:
        super().__init__()
        self._context = context
        self._weight, self._bias = weight, bias
        self._transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        self._context.check(x)
        views = self._context.views
        weight = views[self._weight]
        if self._transposed:
            weight = type(weight)(weight.weight.mT, weight.compute.mT, weight.grad.mT)
        return trial_linear(x, weight, None if self._bias is None else views[self._bias])


class TrialEmbedding(nn.Module):
    """An embedding with a table of its own per trial; what the model's own class does besides (scaling) is kept."""

    def __init__(self, original: nn.Embedding, context: PassContext, weight: str) -> None:
        super().__init__()
        self._original = original
        self._context = context
        self._weight = weight
        del original._parameters["weight"]

    def forward(self, ids: Tensor) -> Tensor:
        context = self._context
        if ids.shape[0] == 1:  # positions, the same for all rows
            ids = ids.expand(context.rows, -1)
        tables = parameter(context.views[self._weight])
        chunks = ids.chunk(context.stop - context.start)
        found = [_with_weight(self._original, table, chunk) for table, chunk in zip(tables, chunks, strict=True)]
        return torch.cat(found)


class TrialNorm(nn.Module):
    """A norm whose forward takes a weight of any shape that broadcasts: the model's own code, a weight per trial."""

    def __init__(self, original: nn.Module, context: PassContext, weight: str) -> None:
        super().__init__()
        self._original = original
        self._context = context
        self._weight = weight
        del original._parameters["weight"]

    def forward(self, x: Tensor) -> Tensor:
        weight = parameter(self._context.views[self._weight])
        k, width = weight.shape
        by_trial = x.reshape(k, -1, *x.shape[1:])
        return _with_weight(self._original, weight.view(k, *[1] * (x.dim() - 1), width), by_trial).flatten(0, 1)


class TrialLayerNorm(nn.Module):
    """torch's LayerNorm, which insists on one weight, with a weight and bias per trial."""

    def __init__(self, original: nn.LayerNorm, context: PassContext, weight: str, bias: str | None) -> None:
        super().__init__()
        self._shape, self._eps = original.normalized_shape, original.eps
        self._context = context
        self._weight, self._bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        views = self._context.views
        weight = parameter(views[self._weight])
        k, width = weight.shape
        shape = (k, *[1] * (x.dim() - 1), width)
        y = F.layer_norm(x, self._shape, eps=self._eps).view(k, -1, *x.shape[1:]) * weight.view(shape)
        if self._bias is not None:
            y = y + parameter(views[self._bias]).view(shape)
        return y.flatten(0, 1)


def _with_weight(module: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    # Module refuses to set a tensor where a Parameter was; its forward finds it all the same.
    vars(module)["weight"] = weight
    try:
        y: Tensor = module(x)
    finally:
        del vars(module)["weight"]
    return y
