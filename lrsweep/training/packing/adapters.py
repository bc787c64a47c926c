"""LoRA as PEFT does it: which modules it targets, how it initialises them, under which names it saves them."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel, Trainer

from lrsweep.training.packing.arena import Weights
from lrsweep.training.packing.errors import Unpackable

_PREFIX = "base_model.model."
# Fresh adapters kept for the next trials.
_KEPT = 4


@dataclass(frozen=True)
class Adapter:
    """One trial's LoRA: weights under PEFT's saved names, rank and scaling (alpha/r, or alpha/sqrt(r) for rsLoRA)."""

    weights: Weights
    rank: int
    scaling: float
    dropout: float


class AdapterMaker:
    """Makes adapters for one model by calling PEFT on its skeleton: all its modules, none of its weights' memory."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._skeleton = _skeleton(model)
        self._made: dict[tuple[str, int], Adapter] = {}

    def make(self, config: LoraConfig, seed: int) -> Adapter:
        """The adapter that `set_seed(seed); get_peft_model(model, config)` begins with. Raises Unpackable."""
        # Trials of a sweep often begin alike, and PEFT takes as long over it as short trials do over many steps.
        key = (repr(config), seed)
        if key not in self._made:
            if len(self._made) == _KEPT:
                del self._made[next(iter(self._made))]
            self._made[key] = self._make(config, seed)
        return self._made[key]

    def _make(self, config: LoraConfig, seed: int) -> Adapter:
        _check(config)
        wrapped = self._wrapped(config, seed)
        layers = {name: module for name, module in wrapped.named_modules() if isinstance(module, LoraLayer)}
        for name, layer in layers.items():
            if not isinstance(layer.get_base_layer(), nn.Linear) and not hasattr(layer.get_base_layer(), "nf"):
                kind = type(layer.get_base_layer()).__name__
                raise Unpackable(
                    f"{name.removeprefix(_PREFIX)} is a {kind}; only linear layers can have packed adapters"
                )
            if ".experts." in name:
                raise Unpackable(
                    f"{name.removeprefix(_PREFIX)} is an expert: which rows reach it is not known beforehand"
                )
        weights = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
        unknown = [name for name in weights if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
        trained = sum(parameter.requires_grad for parameter in wrapped.parameters())
        if unknown or trained != len(weights):
            raise Unpackable(f"the adapter trains more than LoRA's A and B{': ' + unknown[0] if unknown else ''}")
        kinds = {(layer.r["default"], layer.scaling["default"]) for layer in layers.values()}
        if len(kinds) != 1:
            raise Unpackable("rank or alpha differs from layer to layer; a packed trial has one of each")
        ((rank, scaling),) = kinds
        return Adapter({name: weight.detach() for name, weight in weights.items()}, rank, scaling, config.lora_dropout)

    def undecayed(self, config: LoraConfig) -> set[str]:
        """The adapter's weights that transformers' Trainer leaves out of weight decay, by saved name."""
        wrapped = self._wrapped(config, 0)
        decayed = set(Trainer.get_decay_parameter_names(None, wrapped))
        names = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
        return {name.replace(".default.", ".") for name in names - decayed}

    def _wrapped(self, config: LoraConfig, seed: int) -> Any:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT says that it sets fan_in_fan_out for Conv1D.
            warnings.filterwarnings("ignore", "fan_in_fan_out")
            # Adapters are initialised on the CPU, whatever the device of the base.
            torch.default_generator.manual_seed(seed)
            return get_peft_model(_skeleton(self._skeleton), copy.deepcopy(config))


def _skeleton(module: Any) -> Any:
    """A module tree of the same names, shapes and dtypes, to be changed freely.

    A parameter is one zero seen from every place: PEFT asks for shape, dtype and device, not for values. Any kind of
    Linear becomes a plain one: PEFT initialises the adapters of quantized layers in the same way.
    """
    clone: Any = object.__new__(nn.Linear if isinstance(module, nn.Linear) else type(module))
    vars(clone).update(vars(module))
    clone._parameters = {
        name: weight if weight is None else _stand_in(weight) for name, weight in module._parameters.items()
    }
    clone._modules = {name: child if child is None else _skeleton(child) for name, child in module._modules.items()}
    return clone


def _stand_in(weight: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.zeros((), dtype=weight.dtype).expand(weight.shape), requires_grad=weight.requires_grad)


def target(name: str) -> str:
    """The module that an adapter weight of this saved name belongs to, as the base model calls it."""
    return name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0]


def padded_shapes(adapter: Adapter, rank: int) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's weights at the pack's rank: A [R, in], B [out, R]."""
    if adapter.rank > rank:
        raise Unpackable(f"rank {adapter.rank} is above the pack's {rank}")
    return {
        name: (rank, weight.shape[1]) if name.endswith(".lora_A.weight") else (weight.shape[0], rank)
        for name, weight in adapter.weights.items()
    }


def _check(config: LoraConfig) -> None:
    refused: Mapping[str, object] = {
        "use_dora": False,
        "bias": "none",
        "lora_bias": False,
        "modules_to_save": None,
        "target_parameters": None,
        "trainable_token_indices": None,
        "layer_replication": None,
    }
    for key, plain in refused.items():
        value = getattr(config, key, plain)
        if value != plain and value:
            raise Unpackable(f"{key}={value!r}: packed adapters are plain LoRA")
    if config.init_lora_weights not in (True, False, "gaussian"):
        raise Unpackable(
            f"init_lora_weights={config.init_lora_weights!r}: it depends on the base's weights, which the pack shares"
        )
