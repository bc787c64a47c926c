"""Converts a causal language model into a pack, in place, by replacing its modules according to their types."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lrsweep.training.lora_init import takes_from_base
from lrsweep.training.packing.adapters import AdapterMaker, padded_shapes, target
from lrsweep.training.packing.arena import Arena
from lrsweep.training.packing.errors import Unpackable
from lrsweep.training.packing.fused import fuse_rotary, fused_norm
from lrsweep.training.packing.gated_mlp import fuse_gated_mlps
from lrsweep.training.packing.head import Head, find_head
from lrsweep.training.packing.kernels import rotation
from lrsweep.training.packing.layers import (
    JointLinears,
    LoraLinear,
    TrialEmbedding,
    TrialLayerNorm,
    TrialLinear,
    TrialNorm,
)
from lrsweep.training.packing.pack import Pack
from lrsweep.training.packing.pass_context import PassContext
from lrsweep.training.weight_decay import decayed_names

# Builds a module's replacement, given the arena's names of its parameters.
Builder = Callable[[PassContext, Mapping[str, str]], nn.Module]


def pack_lora(
    model: PreTrainedModel,
    config: LoraConfig,
    slots: int,
    *,
    rank: int | None = None,
    compute: torch.dtype | None = None,
    seed: int = 0,
    compile_kernels: bool = False,
) -> Pack:
    """Makes a pack of K adapters over the frozen model.

    Args:
        model: The base model; it is changed in place.
        config: Its target modules are those of all trials. Rank, alpha, dropout and seed may differ between trials.
        slots: The number of slots K.
        rank: The highest rank R that a trial may have. Default: the config's.
        compute: The dtype of the products. If it is not the adapters' dtype, passes run under autocast, as with
            Trainer's `bf16=True`.
        seed: Seeds an adapter that takes from the base's weights (PiSSA), with which all trials then start.
        compile_kernels: On a GPU, compiles kernels for gated MLPs, rotary positions and the loss. It takes seconds, and
            saves about a fifth of the training.

    Raises:
        Unpackable: The model or the adapter cannot be packed; the model is unchanged, except that
            PiSSA and OLoRA may already have taken their part of the weights.
    """
    device = _check(model, compute)
    head = dataclasses.replace(find_head(model), one_kernel=compile_kernels)
    maker = AdapterMaker(model)
    if takes_from_base(config):
        maker.take(model, config, seed)
    adapter = maker.make(config, seed=0)
    saved = {target(name): name.rsplit(".lora_", 1)[0] for name in adapter.weights}
    bases = {name: model.get_submodule(name) for name in saved}
    for name, base in bases.items():
        if base is model.get_output_embeddings():
            raise Unpackable(f"{name} is the output layer, which sees label tokens only and takes no packed adapter")
    shapes = padded_shapes(adapter, rank or adapter.rank)
    a_names, b_names = ({name: f"{saved[name]}.lora_{part}.weight" for name in bases} for part in "AB")
    groups = _groups_by_input(model, bases)
    undecayed = maker.undecayed(config)
    stacks = {
        f"{a_names[names[0]]} and its neighbours": [a_names[name] for name in names]
        for names in groups
        if len(names) > 1 and len({a_names[name] in undecayed for name in names}) == 1
    }
    placed = [which[name] for names in groups for which in (a_names, b_names) for name in names]
    arena = Arena(
        {name: shapes[name] for name in placed},
        slots,
        undecayed=undecayed,
        scaled=set(b_names.values()),
        stacks=stacks,
        dtype=next(iter(adapter.weights.values())).dtype,
        compute=compute,
        device=device,
    )
    context = PassContext(arena)
    layers = {name: LoraLinear(base, context, a_names[name], b_names[name]) for name, base in bases.items()}
    by_a = {a_names[name]: layer for name, layer in layers.items()}
    for stack, parts in stacks.items():
        joint = JointLinears([by_a[part] for part in parts], context, stack)
        for part in parts:
            by_a[part].joint = joint
    if compile_kernels:
        fuse_gated_mlps(model)
    norms = {module: fused for module in model.modules() if (fused := fused_norm(module)) is not None}
    _replace(model, norms | {base: layers[name] for name, base in bases.items()})
    fuse_rotary(model, rotation(model) if compile_kernels else None)
    model.requires_grad_(False)
    return Pack(model, arena, context, head, adapters=maker)


def pack_weights(
    model: PreTrainedModel,
    slots: int,
    *,
    compute: torch.dtype | None = None,
    frozen_rows: Mapping[str, Sequence[tuple[int, int]]] | None = None,
) -> Pack:
    """Makes a pack of K copies of the model's trainable parameters; the other ones stay shared and frozen.

    An output layer that is tied to the embeddings stays tied to them in each trial.

    Args:
        model: The model; it is changed in place. Its parameters with `requires_grad` are trained.
        slots: The number of slots K.
        compute: The dtype of the products, as in `pack_lora`.
        frozen_rows: Rows of trained parameters that get no gradient, as in Arena.

    Raises:
        Unpackable: The model cannot be packed; it is unchanged.
    """
    device = _check(model, compute)
    head = find_head(model)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    dtypes = {str(weight.dtype) for weight in trained.values()}
    if len(dtypes) != 1:
        raise Unpackable(f"trained weights must be of one dtype, and here are {', '.join(sorted(dtypes)) or 'none'}")
    builders = {module: _builder(name, module) for name, module in model.named_modules() if _own(module)}
    base = {name: weight.detach() for name, weight in trained.items()}
    arena = Arena(
        {name: weight.shape for name, weight in base.items()},
        slots,
        undecayed=trained.keys() - decayed_names(model),
        frozen=frozen_rows,
        dtype=next(iter(base.values())).dtype,
        compute=compute,
        device=device,
    )
    context = PassContext(arena)
    # Tied parameters are one tensor with one name.
    names = {module: {key: _name(weight, trained) for key, weight in _own(module).items()} for module in builders}
    output = names.get(model.get_output_embeddings())
    if output is not None:
        head = Head(output["weight"], output.get("bias"), head.vocabulary, head.softcap)
    _replace(model, {module: build(context, names[module]) for module, build in builders.items()})
    model.requires_grad_(False)
    return Pack(model, arena, context, head, base=base)


def _check(model: PreTrainedModel, compute: torch.dtype | None) -> torch.device:
    """The model's device. Raises Unpackable for what would mix trials or change their numbers."""
    devices: set[torch.device] = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1:
        raise Unpackable(f"the model is spread over {', '.join(sorted(map(str, devices)))}")
    if torch.float16 in {compute, *(parameter.dtype for parameter in model.parameters())}:
        raise Unpackable(
            "float16 needs a gradient scaler, which would tie the trials together; use bfloat16 or float32"
        )
    if getattr(model.config, "output_router_logits", False):
        raise Unpackable("the router's auxiliary loss is taken over a whole batch, and would mix the trials")
    for name, module in model.named_modules():
        own = {"p": module.p} if isinstance(module, nn.Dropout) else vars(module)
        for key, value in own.items():
            if isinstance(value, float) and value > 0 and ("drop" in key or isinstance(module, nn.Dropout)):
                raise Unpackable(
                    f"{name}.{key} = {value}: dropout inside the model draws from one random stream for all trials; "
                    "set it to 0"
                )
    return devices.pop()


@torch.no_grad()
def _groups_by_input(model: PreTrainedModel, layers: Mapping[str, nn.Module]) -> list[list[str]]:
    """The layers' names; those of plain layers that read the same tensor are one group, in the order of their calls.

    Args:
        model: The model. It runs once, on 4 tokens.
        layers: The layers by name.
    """
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs[name].append(args[0]))
        for name, layer in layers.items()
    ]
    try:
        ids = torch.arange(4, device=model.get_input_embeddings().weight.device)[None]
        model.get_decoder()(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    groups: dict[int, list[str]] = {}
    # The inputs are all alive here, so that each has an id of its own.
    for name, found in inputs.items():
        plain = len(found) == 1 and type(layers[name]) in (nn.Linear, Conv1D)
        groups.setdefault(id(found[0] if plain else layers[name]), []).append(name)
    return list(groups.values())


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's own parameters by name; empty if none of them is trained."""
    own = dict(module.named_parameters(recurse=False))
    return own if any(weight.requires_grad for weight in own.values()) else {}


def _name(weight: nn.Parameter, trained: Mapping[str, nn.Parameter]) -> str:
    return next(name for name, other in trained.items() if other is weight)


def _builder(name: str, module: nn.Module) -> Builder:
    """What builds a module's replacement with weights for each trial. Raises Unpackable for an unknown module."""
    own = _own(module)
    if not all(weight.requires_grad for weight in own.values()):
        raise Unpackable(f"{name} is trained in part; its weight and bias must be trained or frozen together")
    if type(module).forward is nn.Linear.forward:
        return lambda context, names: TrialLinear(context, names["weight"], names.get("bias"))
    if type(module) is Conv1D:
        return lambda context, names: TrialLinear(context, names["weight"], names["bias"], transposed=True)
    if isinstance(module, nn.Embedding) and module.max_norm is None:
        return lambda context, names: TrialEmbedding(module, context, names["weight"])
    if isinstance(module, nn.LayerNorm):
        return lambda context, names: TrialLayerNorm(module, context, names["weight"], names.get("bias"))
    if own.keys() == {"weight"} and _broadcasts(module, own["weight"]):
        return lambda context, names: TrialNorm(module, context, names["weight"])
    raise Unpackable(f"{name} is a {type(module).__name__}, which cannot be given weights of its own for each trial")


@torch.no_grad()
def _broadcasts(module: nn.Module, weight: nn.Parameter) -> bool:
    """Whether a module with one weight vector also takes a weight for each row, with the same results for each."""
    if weight.dim() != 1:
        return False
    generator = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(2, 3, len(weight), generator=generator, dtype=weight.dtype, device=weight.device)
    weights = torch.randn(2, 1, len(weight), generator=generator, dtype=weight.dtype, device=weight.device)

    def run(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.func.functional_call(module, {"weight": weight}, (x,))
        return y

    try:
        at_once = run(weights, x)
        one_by_one = torch.stack([run(weights[row, 0], x[row]) for row in range(2)])
    except (RuntimeError, TypeError, ValueError):
        return False
    return at_once.shape == one_by_one.shape and torch.allclose(at_once, one_by_one)


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if module in replacements:
                setattr(parent, name, replacements[module])
