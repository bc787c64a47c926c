"""Modules that replace those of a converted model, with weights for each trial.

The k*B rows of their input go trial by trial, with the same B for each trial.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrsweep.training.packing.functions import (
    Frozen,
    Plan,
    adapted_linear,
    adapted_linears,
    add_adapter,
    parameter,
    trial_linear,
)
from lrsweep.training.packing.pass_context import PassContext


class LoraLinear(nn.Module):
    """A frozen base layer, shared by all trials, with an adapter for each trial.

    A plain Linear or Conv1D in the adapters' dtype takes a faster path than other base layers.

    Args:
        base: The base layer.
        context: The context of the passes.
        a: The arena's name of A [R, in].
        b: The arena's name of B [out, R].

    Attributes:
        frozen: The weight and bias of a plain base layer; None for others.
        b: The arena's name of B.
        joint: The layers that read the same input, if there are several.
    """

    def __init__(self, base: nn.Module, context: PassContext, a: str, b: str) -> None:
        super().__init__()
        self.base = base
        self.b = b
        self._context = context
        self._a = a
        self._layer = context.layer()
        self.frozen = _frozen(base)
        self.joint: JointLinears | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output [k*B, T, out] for x [k*B, T, in]."""
        self.check(x)
        context = self._context
        a, b = context.views[self._a], context.views[self.b]
        if self.frozen is not None and self.is_plain(x):
            if self.joint is not None and not torch.compiler.is_compiling():
                return self.joint.output(self, x)
            return adapted_linear(x, *self.frozen, a, b)
        return add_adapter(self.base(x), context.drop(self._layer, x), a, b)

    def check(self, x: Tensor) -> None:
        """Checks that an input has all rows of the pass: see `PassContext.check`."""
        self._context.check(x)

    def is_plain(self, x: Tensor) -> bool:
        """Whether the pass has no dropout, and the base layer, the adapters and x have one dtype."""
        context = self._context
        if self.frozen is None or context.drops:
            return False
        return x.dtype == self.frozen.weight.dtype == context.views[self._a].compute.dtype

    def plan(self) -> Plan:
        """The layer in the current pass; it must have a plain base."""
        assert self.frozen is not None
        views = self._context.views
        return Plan.of([self.frozen], None, views[self._a], [views[self.b]])


class JointLinears:
    """Layers that read one input, such as q, k and v: the first that is called computes the outputs of all.

    A layer that gets another input than the others computes them anew, so this costs time but changes no result.

    Args:
        layers: The layers, in the order in which the model calls them.
        context: The context of the passes.
        a: The arena's name of their A, concatenated.

    Attributes:
        layers: The layers.
    """

    def __init__(self, layers: Sequence[LoraLinear], context: PassContext, a: str) -> None:
        self.layers = layers
        self._context = context
        self._a = a
        self._frozen = [layer.frozen for layer in layers if layer.frozen is not None]
        self._joint = _concatenated(self._frozen)
        self._input: tuple[Tensor, int, int] | None = None
        self._outputs: dict[LoraLinear, Tensor] = {}

    def output(self, layer: LoraLinear, x: Tensor) -> Tensor:
        """The output of one of the layers [k*B, T, out] for x [k*B, T, in]."""
        context = self._context
        known = self._input
        same = known is not None and known[0] is x and known[1:] == (x._version, context.count)
        if not same or layer not in self._outputs:
            outputs = adapted_linears(x, self.plan())
            self._outputs = dict(zip(self.layers, outputs, strict=True))
            self._input = x, x._version, context.count
        y = self._outputs.pop(layer)
        if not self._outputs:
            self._input = None
        return y

    def plan(self) -> Plan:
        """The layers in the current pass."""
        views = self._context.views
        return Plan.of(self._frozen, self._joint, views[self._a], [views[each.b] for each in self.layers])


def _frozen(base: nn.Module) -> Frozen | None:
    # By exact type: subclasses (4-bit, 8-bit) compute differently.
    if type(base) is nn.Linear:
        return Frozen(base.weight, base.bias)
    if type(base) is Conv1D:
        return Frozen(base.get_parameter("weight").mT, base.get_parameter("bias"))
    return None


def _concatenated(layers: Sequence[Frozen]) -> Frozen | None:
    """The layers as one, whose memory they then share; None where that would not pay.

    On a GPU, a narrow layer by itself leaves most of the device idle (k and v under grouped-query attention). Layers of
    the same size each fill it, and outputs of their own are contiguous; a CPU has no use for it either.
    """
    weights = [layer.weight for layer in layers]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if weights[0].is_cpu or len({weight.shape for weight in weights}) == 1 or 0 < len(biases) < len(layers):
        return None
    if any(not weight.is_contiguous() for weight in weights):
        return None
    joint = Frozen(torch.cat(weights).detach(), torch.cat(biases).detach() if biases else None)
    for parts, whole in ((weights, joint.weight), (biases, joint.bias)):
        if whole is not None:
            for part, own in zip(parts, torch.split(whole, [len(part) for part in parts]), strict=True):
                part.data = own
    return joint


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
