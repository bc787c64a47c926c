"""LoRA adapters made by PEFT itself: target modules, initialisation and saved names are PEFT's.

LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021). rsLoRA: Kalajdzievski, "A Rank
Stabilization Scaling Factor for Fine-Tuning with LoRA" (2023).
"""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from lrsweep.training.lora_init import takes_from_base, with_adapter
from lrsweep.training.packing.arena import Weights
from lrsweep.training.packing.errors import Unpackable
from lrsweep.training.weight_decay import decayed_names

_PREFIX = "base_model.model."
# How many fresh adapters are kept for later trials.
_KEPT = 4


@dataclass(frozen=True)
class Adapter:
    """One trial's LoRA adapter.

    Attributes:
        weights: A [R, in] and B [out, R] of each target module, by the names that PEFT saves them under.
        rank: The rank R.
        scaling: The factor of the adapter's output: alpha / R, or alpha / sqrt(R) for rsLoRA.
        dropout: The dropout rate of the adapter's input.
    """

    weights: Weights
    rank: int
    scaling: float
    dropout: float


class AdapterMaker:
    """Makes adapters for a model by applying PEFT to a skeleton of it: all its modules, without memory for weights.

    Args:
        model: The base model; it is not changed.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._skeleton = _skeleton(model)
        # The config of the adapter that has taken from the base, and the adapter.
        self._taken: tuple[str, Adapter] | None = None
        self._made: dict[tuple[str, int], Adapter] = {}

    def make(self, config: LoraConfig, seed: int) -> Adapter:
        """The adapter that `set_seed(seed); get_peft_model(model, config)` starts with.

        Args:
            config: PEFT's config of the adapter.
            seed: Seeds its initialisation.

        Raises:
            Unpackable: It is not a plain LoRA adapter with one rank and scaling, on linear layers; or it takes another
                part of the base than the pack's adapters do.
        """
        if takes_from_base(config) or self._taken is not None:
            if self._taken is None or self._taken[0] != _start(config):
                raise Unpackable(f"init_lora_weights={config.init_lora_weights!r}: the pack's base has another start")
            return replace(self._taken[1], dropout=config.lora_dropout)
        # Many trials start from the same adapter, and making one takes PEFT as long as many steps of a short trial.
        key = (repr(config), seed)
        if key not in self._made:
            if len(self._made) == _KEPT:
                del self._made[next(iter(self._made))]
            self._made[key] = self._make(config, seed)
        return self._made[key]

    def take(self, model: PreTrainedModel, config: LoraConfig, seed: int) -> None:
        """Takes the adapter with which all trials will start out of the base's weights (PiSSA, OLoRA).

        Args:
            model: The base model; it keeps the rest.
            config: PEFT's config of the adapter.
            seed: Seeds its initialisation.

        Raises:
            Unpackable: As `make`.
        """
        _check(config)
        wrapped = with_adapter(model, copy.deepcopy(config), seed)
        self._taken = _start(config), self._adapter(wrapped, config)
        wrapped.unload()

    def _make(self, config: LoraConfig, seed: int) -> Adapter:
        _check(config)
        return self._adapter(self._wrapped(config, seed), config)

    def _adapter(self, wrapped: Any, config: LoraConfig) -> Adapter:
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
        """The saved names of the adapter's weights that transformers' Trainer excludes from weight decay."""
        wrapped = self._wrapped(config, 0)
        decayed = decayed_names(wrapped)
        names = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
        return {name.replace(".default.", ".") for name in names - decayed}

    def _wrapped(self, config: LoraConfig, seed: int) -> Any:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT warns that it sets fan_in_fan_out for Conv1D.
            warnings.filterwarnings("ignore", "fan_in_fan_out")
            # Adapters are initialised on the CPU, whatever the base's device.
            torch.default_generator.manual_seed(seed)
            plain = copy.deepcopy(config)
            if takes_from_base(config):
                plain.init_lora_weights = True  # a skeleton has no weights to take from
            return get_peft_model(_skeleton(self._skeleton), plain)


def _skeleton(module: Any) -> Any:
    """A copy of a module tree with the same names, shapes and dtypes, which may be changed freely.

    A parameter is a single zero, expanded: PEFT needs its shape, dtype and device, not its values. Any kind of Linear
    becomes a plain one, because PEFT initialises the adapters of quantized layers in the same way.
    """
    clone: Any = object.__new__(nn.Linear if isinstance(module, nn.Linear) else type(module))
    vars(clone).update(vars(module))
    clone._parameters = {
        name: weight if weight is None else _placeholder(weight) for name, weight in module._parameters.items()
    }
    clone._modules = {
        name: submodule if submodule is None else _skeleton(submodule) for name, submodule in module._modules.items()
    }
    return clone


def _placeholder(weight: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.zeros((), dtype=weight.dtype).expand(weight.shape), requires_grad=weight.requires_grad)


def target(name: str) -> str:
    """The base model's name of the module that the adapter weight with this saved name belongs to."""
    return name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0]


def padded_shapes(adapter: Adapter, rank: int) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's weights at the pack's rank R: A [R, in], B [out, R], by saved name.

    Args:
        adapter: The adapter, of the pack's rank or a lower one.
        rank: The pack's rank.

    Raises:
        Unpackable: The adapter's rank is above the pack's.
    """
    if adapter.rank > rank:
        raise Unpackable(f"rank {adapter.rank} is above the pack's {rank}")
    return {
        name: (rank, weight.shape[1]) if name.endswith(".lora_A.weight") else (weight.shape[0], rank)
        for name, weight in adapter.weights.items()
    }


def _start(config: LoraConfig) -> str:
    """What the start of an adapter depends on: all but dropout."""
    plain = copy.deepcopy(config)
    plain.lora_dropout = 0.0
    return repr(plain)


def _check(config: LoraConfig) -> None:
    """Raises Unpackable for options that make more of the adapter than plain LoRA."""
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
    if config.init_lora_weights not in (True, False, "gaussian", "orthogonal") and not takes_from_base(config):
        raise Unpackable(f"init_lora_weights={config.init_lora_weights!r}: it depends on data")
