"""Fresh LoRA adapters, also those that take a part of the base's weights: PiSSA and OLoRA.

PiSSA: Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models" (2024).
OLoRA: Büyükakyüz, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models" (2024).

Their base keeps W - s B0 A0, with s the adapter's scaling and A0 and B0 its first weights, so what they train fits this
base only. For the original base, it is an adapter of twice the rank: its change is s (B A - B0 A0).
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, set_seed


def takes_from_base(config: LoraConfig) -> bool:
    """Whether the base lacks what the adapter starts with."""
    return isinstance(config.init_lora_weights, str) and config.init_lora_weights.startswith(("pissa", "olora"))


def draws_from_base(config: LoraConfig) -> bool:
    """Whether it depends on the seed what an adapter takes from the base."""
    return takes_from_base(config) and "_niter_" in str(config.init_lora_weights)


def with_adapter(model: PreTrainedModel, config: LoraConfig, seed: int) -> Any:
    """PEFT's model around the base with a fresh adapter; the base is changed in place.

    Args:
        model: The base model.
        config: PEFT's config of the adapter.
        seed: Seeds its initialisation.

    Raises:
        ValueError: The model lacks the target modules.
    """
    set_seed(seed)
    if not (takes_from_base(config) and model.dtype == torch.float64):
        return get_peft_model(model, config)
    # PEFT decomposes weights in float32, and takes no others.
    return get_peft_model(model.float(), config).double()


def for_original_base(
    weights: Mapping[str, Tensor], first: Mapping[str, Tensor], config: LoraConfig
) -> tuple[dict[str, Tensor], LoraConfig]:
    """A trained adapter that has taken from the base, as an adapter of the original base.

    Args:
        weights: Its A [R, in] and B [out, R], by the names that PEFT saves them under.
        first: Those that it started with.
        config: Its config.

    Returns:
        A [2R, in] and B [out, 2R] of the adapter for the original base, and its config.
    """
    wider = {
        name: torch.cat([weight, first[name]], 0)
        if name.endswith(".lora_A.weight")
        else torch.cat([weight, -first[name]], 1)
        for name, weight in weights.items()
    }
    plain = copy.deepcopy(config)
    plain.init_lora_weights, plain.r = True, 2 * config.r
    # The scaling, alpha / R or alpha / sqrt(R), stays what it was.
    plain.lora_alpha = config.lora_alpha * (math.sqrt(2) if config.use_rslora else 2)
    return wider, plain
