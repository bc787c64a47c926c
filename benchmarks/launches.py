"""Counts what one packed step asks of a GPU, without one: `python benchmarks/launches.py`, half a minute.

The shape is Qwen2.5-0.5B's with an adapter of rank 16 on every linear layer, in bfloat16: one row of 512 tokens a
trial, the second half with labels. The step runs on meta tensors, which have shapes and no values, and every operation
is counted on its way to the device:

- launches: the kernels that CUDA starts for it;
- traffic: at least the bytes that it reads and writes at 2.6 TB/s, its arithmetic at 600 TFLOP/s, or 2 us a kernel;
- waits: whatever makes the host wait for the device, such as reading a number back or copying from pageable memory.

These are estimates of a large GPU, not measurements. Where a library takes another path on CUDA than on meta tensors
(attention, norms, autocast, fused optimizers), the operation that CUDA has is counted in its place. A kernel of
lrsweep's own is counted by what it reads and writes. `earlier` in the results is what the version before these savings
took.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import math
import traceback
import unittest.mock
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import RESULTS, about, save, table
from peft import LoraConfig
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import AutoModelForCausalLM, Qwen2Config

from lrsweep.config.trial_schema import OptimizerConfig
from lrsweep.training.optimizer import optimizer_class
from lrsweep.training.packing import Pack, join, lay_end_to_end, pack_lora, train_pass

SHAPE: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "use_cache": False,
}
LAYERS = 24
FLOPS, BANDWIDTH, SHORTEST = 600e12, 2.6e12, 2e-6
# Operations that start no kernel and are no views by their schema.
NO_KERNEL = ("_unsafe_view", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
# Operations that start several.
KERNELS = {"_scaled_dot_product_flash_attention_backward": 3, "nonzero": 4, "sort": 4, "index_put_": 3, "topk": 2}
# Operations that give the host a number or a shape that depends on the device's values.
WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "allclose", "item", "masked_select", "_unique2")


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations on meta tensors; all others run as they are.

    Attributes:
        launches: Kernels by operation.
        seconds: Estimated time on the device, by operation.
        moved: Bytes read and written.
        waits: What the host waits for, with its place in the code.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reset()

    def reset(self) -> None:
        self.launches: collections.Counter[str] = collections.Counter()
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.waits: collections.Counter[str] = collections.Counter()
        self.moved = 0

    def one_kernel(self, name: str, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        """Counts a kernel that reads what it is given, and writes what it makes."""
        moved = sum(map(_bytes, [*given, *made]))
        self.launches[name] += 1
        self.moved += moved
        self.seconds[name] += max(moved / BANDWIDTH, SHORTEST)

    def counts(self) -> dict[str, Any]:
        return {
            "launches": self.launches.total(),
            "ms": round(1e3 * sum(self.seconds.values()), 2),
            "GB": round(self.moved / 1e9, 1),
            "waits": self.waits.total(),
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func._schema.name.split("::")[1]
        to_device = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta"
        on_device = [tensor for tensor in given if tensor.is_meta]
        if not on_device and not to_device:
            return func(*args, **kwargs)
        self._look_for_waits(name, given, on_device, kwargs)
        if name in ("_local_scalar_dense", "allclose", "equal"):
            # Only checks ask for values here, and they pass.
            return 0.0 if name == "_local_scalar_dense" and given[0].dtype != torch.bool else True
        found = func(*args, **kwargs)
        if func.is_view or name in NO_KERNEL:
            return found
        made = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        kernels = _fused_kernels(args) if name.startswith(("_fused_adam", "_foreach")) else KERNELS.get(name, 1)
        moved = _moved(name, args, kwargs, on_device, made)
        work = _flops(func, name, args, found)
        self.launches[name] += kernels
        self.moved += moved
        self.seconds[name] += max(work / FLOPS, moved / BANDWIDTH, SHORTEST * kernels)
        return found

    def _look_for_waits(self, name: str, given: list[Tensor], on_device: list[Tensor], kwargs: dict[str, Any]) -> None:
        on_host = [tensor for tensor in given if not tensor.is_meta and tensor.dim()]
        target = kwargs.get("device")
        if name == "_to_copy" and target is not None:
            crosses = bool(on_device) != (torch.device(target).type == "meta")
            waits = crosses and not kwargs.get("non_blocking", False)
        elif name == "copy_":
            waits = bool(on_host) and not kwargs.get("non_blocking", False)
        else:
            waits = name in WAITS or bool(on_host)
        if waits:
            self.waits[f"{name} at {_place()}"] += 1


class AsOnCuda(TorchFunctionMode):
    """Has meta tensors take CUDA's paths through torch's functions. It is imitated in what it moves, not in values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_device = any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs)))
        if on_device and func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if on_device and func is torch.nn.functional.rms_norm:
            return _Norm.apply(args[0])  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


class _Norm(torch.autograd.Function):
    """As many bytes as torch's fused kernels move: x to y, and dy and x to dx."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return torch.add(dy, ctx.saved_tensors[0])


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Any:
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    causal, scale = options.get("is_causal", False), options.get("scale")
    if attn_mask is None:
        return flash(query, key, value, 0.0, causal, scale=scale)[0]
    bias = torch.empty_like(attn_mask, dtype=query.dtype).expand(*query.shape[:3], key.shape[2])
    return efficient(query, key, value, bias, True, 0.0, causal, scale=scale)[0]


def _fused_kernels(args: Sequence[Any]) -> int:
    """Kernels of an optimizer's fused operation: each takes at most 36 tensors and 320 blocks of 65536 elements."""
    tensors = next(argument for argument in args if isinstance(argument, list | tuple))
    blocks: int = sum(math.ceil(tensor.numel() / 65536) for tensor in tensors)
    return max(math.ceil(len(tensors) / 36), math.ceil(blocks / 320))


def _moved(name: str, args: Sequence[Any], kwargs: dict[str, Any], on_device: list[Tensor], made: list[Tensor]) -> int:
    if name.startswith("new_") or name.endswith("_like"):
        return sum(map(_bytes, made))
    if name in ("index_select", "embedding", "gather"):
        return 2 * sum(map(_bytes, made))
    if name == "scatter_add_":
        return 3 * _bytes(args[2])
    if name in ("scatter_", "index_put_"):
        return 2 * _bytes(args[2])
    # What is given to be written is among what is made.
    written = 0 if kwargs.get("out") is None else _bytes(kwargs["out"])
    return sum(map(_bytes, on_device)) + sum(map(_bytes, made)) - written


def _bytes(tensor: Tensor) -> int:
    """What is read or written of a tensor; an axis with stride 0 is read once."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return int(math.prod(size for size, stride in pairs if stride) * tensor.element_size())


def _flops(func: Any, name: str, args: Sequence[Any], found: Any) -> float:
    if "scaled_dot_product" in name:
        query, key = args[1:3] if "backward" in name else args[:2]
        products: int = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2] * query.shape[3]
        return 4 * products * (2.5 if "backward" in name else 1) / (2 if "flash" in name else 1)
    counted = flop_registry.get(func.overloadpacket)
    factors = [argument for argument in args if isinstance(argument, Tensor)]
    return 0.0 if counted is None else float(counted(*factors, out_val=found))


def _place() -> str:
    """The innermost line of lrsweep, transformers or an optimizer."""
    for frame in reversed(traceback.extract_stack()):
        if any(f"/{part}/" in frame.filename for part in ("lrsweep/training", "transformers", "torch/optim")):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "?"


# What CUDA has for 16-bit matrices that are added to a float32 one.
torch.library.impl("aten::baddbmm.dtype_out", "Meta", lambda *_, out, **__: out)


class Kernels:
    """Stands for `triton_kernels` where there are no values: each kernel is counted as what it moves."""

    MAX_RANK = 64

    class LowRank(NamedTuple):
        left: Tensor
        right: Tensor

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def gated(self, gate: Tensor, up: Tensor, adapters: Any = None) -> Tensor:
        y = torch.empty_like(gate)
        self._counter.one_kernel("gated", [gate, up, *tree_leaves(adapters or ())], [y])
        return y

    def gated_backward(
        self, dy: Tensor, gate: Tensor, up: Tensor, adapters: Any = None, of_dy: Any = None
    ) -> tuple[Tensor, Tensor]:
        made = torch.empty_like(gate), torch.empty_like(up)
        self._counter.one_kernel("gated_backward", [dy, gate, up, *tree_leaves((adapters or (), of_dy or ()))], made)
        return made

    def rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> tuple[Tensor, Tensor]:
        made = torch.empty_like(q), torch.empty_like(k)
        self._counter.one_kernel("rotate", [q, k, cos, sin], made)
        return made

    def cross_entropy(self, logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        # The logits are read for the sum of their exponentials, and again for the gradient.
        self._counter.one_kernel("cross_entropy", [logits, logits, wanted], [losses, logits])
        return losses, logits


@contextlib.contextmanager
def counting() -> Iterator[Counter]:
    """Counts the operations on meta tensors inside the block."""
    with contextlib.ExitStack() as stack:
        for kind in ("foreach", "fused"):
            supported = f"torch.optim.optimizer._get_{kind}_kernels_supported_devices"
            stack.enter_context(unittest.mock.patch(supported, return_value=["cpu", "meta"]))
        # There is none for meta tensors. All that runs under it here has the dtype of the products already.
        stack.enter_context(unittest.mock.patch("torch.autocast", return_value=contextlib.nullcontext()))
        counter = stack.enter_context(Counter())
        stack.enter_context(AsOnCuda())
        kernels = "lrsweep.training.packing.kernels.triton_kernels"
        stack.enter_context(unittest.mock.patch(kernels, return_value=Kernels(counter)))
        yield counter


def build(slots: int, lora: LoraConfig, layers: int, kernels: bool) -> Pack:
    shape = Qwen2Config(**SHAPE, num_hidden_layers=layers)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.tie_weights()
    longest = lay_end_to_end(model, batch(64))
    pack = pack_lora(model, lora, slots, compute=torch.bfloat16, compile_kernels=kernels)
    pack = dataclasses.replace(pack, unpadded=longest, maskless=longest)
    optimizer, arguments = optimizer_class(OptimizerConfig(name="adamw", lr=1e-4))
    for slot in range(slots):
        pack.admit(slot, pack.start(lora, 0), lambda groups: optimizer(groups, **arguments), max_norm=1.0)
    return pack


def batch(tokens: int) -> dict[str, Tensor]:
    ids = torch.randint(SHAPE["vocab_size"], (1, tokens), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : tokens // 2] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def count(
    slots: int, *, tokens: int = 512, dropout: float = 0.0, layers: int = LAYERS, kernels: bool = True
) -> dict[str, dict[str, Any]]:
    """What the second step of a pack of `slots` trials costs: its forward and backward pass, and its optimizers.

    `kernels` are those that a long training compiles.
    """
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=dropout)
    with counting() as counter:
        pack = build(slots, lora, layers, kernels)
        joined = join([batch(tokens)] * slots)
        labels = [tokens // 2] * slots
        train_pass(pack, 0, slots, joined, labels)
        pack.arena.step(range(slots))
        counter.reset()
        train_pass(pack, 0, slots, joined, labels)
        found = {"pass": counter.counts() | _details(counter)}
        counter.reset()
        pack.arena.step(range(slots))
        return found | {"optimizers": counter.counts() | _details(counter)}


def _details(counter: Counter) -> dict[str, Any]:
    slowest = sorted(counter.seconds, key=lambda name: -counter.seconds[name])
    return {
        "most launches": dict(counter.launches.most_common(12)),
        "most ms": {name: round(1e3 * counter.seconds[name], 2) for name in slowest[:12]},
        "waits at": dict(counter.waits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--details", action="store_true", help="name the operations with the most launches and time")
    parser.add_argument("--out", type=Path, default=RESULTS / "launches.json")
    arguments = parser.parse_args()
    rows, entries = [], []
    cells = ((1, 0.0, True), (8, 0.0, True), (32, 0.0, True), (8, 0.05, True), (8, 0.0, False))
    for slots, dropout, kernels in cells:
        for part, counts in count(slots, dropout=dropout, kernels=kernels).items():
            details = {name: counts.pop(name) for name in ("most launches", "most ms", "waits at")}
            entries.append({"trials": slots, "dropout": dropout, "compiled_kernels": kernels, "part": part} | counts)
            name = f"K={slots}, dropout {dropout}{'' if kernels else ', no compiled kernels'}: {part}"
            rows.append([name, *counts.values()])
            if arguments.details:
                print(rows[-1], *details.items(), sep="\n  ")
    print(table(["trials and part", "launches", "ms", "GB", "waits"], rows))
    # What an earlier version took stays in the file, for comparison.
    earlier = json.loads(arguments.out.read_text()).get("earlier", []) if arguments.out.exists() else []
    save(arguments.out, about("torch", "transformers"), counts=entries, earlier=earlier)


if __name__ == "__main__":
    main()
