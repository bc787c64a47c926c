"""Whether a model can be trained here at all, by its config and its architecture without weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.quantizers.auto import AutoHfQuantizer

from lrsweep import hardware
from lrsweep.config.trial_schema import FinetuneConfig, ModelConfig
from lrsweep.errors import InputError
from lrsweep.training.data.loading import FinetuneData

# Bytes of a parameter.
_QUANTIZED = {"4bit": 0.5, "8bit": 1.0}


def check_causal(model: ModelConfig, skeleton: Any) -> None:
    """Refuses an encoder, whose tokens see the tokens that they are to predict.

    Raises:
        InputError: It is one.
    """
    kind, config = skeleton.config.model_type, skeleton.config
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind == "bert-generation"
    if encoder and getattr(config, "is_decoder", None) is False:
        raise InputError(
            f"model.path={model.path!r}: {kind} is an encoder: its tokens see those that they are to predict; use a "
            "causal language model"
        )


def check_attention(model: ModelConfig) -> None:
    """Refuses an attention that needs a GPU where there is none. Raises InputError."""
    if model.attn_implementation == "flex_attention" and not torch.cuda.is_available():
        raise InputError(
            "model.attn_implementation='flex_attention': needs a CUDA GPU, and this machine has none; use sdpa or eager"
        )


def check_quantized_weights(model: ModelConfig, finetune: FinetuneConfig, config: Any) -> None:
    """Checks weights that are stored quantized (GPTQ, fp8): their library is there, and they can be trained.

    Args:
        model: The model, for messages.
        finetune: The mode of the fine-tuning.
        config: transformers' config of the model.

    Raises:
        InputError: They cannot be loaded here, or not be trained.
    """
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization.quant_method
    what = f"model.path={model.path!r}: its weights are quantized ({getattr(method, 'value', method)})"
    if finetune.mode != "lora":
        raise InputError(f"{what} and cannot be trained; use finetune=lora, or the model that they were made from")
    try:
        quantizer = AutoHfQuantizer.from_config(quantization)
        quantizer.validate_environment(device_map=None, weights_only=False)
    # Each method has its own checks, which raise what they like.
    except Exception as fault:
        reason = next(iter(str(fault).strip().splitlines()), type(fault).__name__)
        raise InputError(f"{what}: {reason}") from None
    if not quantizer.is_trainable:
        raise InputError(f"{what}, through which nothing can be trained; use the model that they were made from")


def check_memory(model: ModelConfig, finetune: FinetuneConfig, stored: torch.dtype, skeleton: nn.Module) -> None:
    """Refuses a model whose weights alone are more than all memory; trained ones also have gradients.

    Args:
        model: Its quantization, and for messages.
        finetune: The mode of the fine-tuning.
        stored: The dtype of the weights.
        skeleton: The model without weights.

    Raises:
        InputError: It is too large, with the figures.
    """
    count = sum(parameter.numel() for parameter in skeleton.parameters())
    each = _QUANTIZED.get(model.quantization or "", float(stored.itemsize))
    # A model with stored quantization has fewer bytes than its dtype says.
    if getattr(getattr(skeleton, "config", None), "quantization_config", None) is not None:
        each = 0.25
    parts = "weights and gradients" if finetune.mode == "full" else "weights"
    needed = count * each * (2 if finetune.mode == "full" else 1)
    on_gpu = torch.cuda.is_available()
    there = torch.cuda.get_device_properties(0).total_memory if on_gpu else hardware.memory()
    if needed > there:
        raise InputError(
            f"model.path={model.path!r}: {count / 1e9:.3g}e9 parameters: their {parts} need {needed / 1e9:.3g} GB, and "
            f"{'the GPU' if on_gpu else 'this machine'} has {there / 1e9:.3g} GB; use a smaller model"
            f"{', or finetune=lora' if finetune.mode == 'full' else ''}"
        )


def positions(skeleton: nn.Module) -> int | None:
    """The number of positions that a model has learned; None if it counts on without an end, as with RoPE."""
    tables = [name for name, module in skeleton.named_modules() if isinstance(module, nn.Embedding)]
    learned = any(part in name.rsplit(".", 1)[-1] for name in tables for part in ("wpe", "position", "pos_e"))
    limit = getattr(getattr(skeleton, "config", None), "max_position_embeddings", None)
    return limit if learned and isinstance(limit, int) else None


def check_lengths(limit: int | None, max_length: int, data: FinetuneData) -> None:
    """Refuses rows that are longer than the model's positions. Raises InputError."""
    longest = max(max(example.segments, default=len(example.input_ids)) for example in (*data.train, *data.evaluation))
    if limit is not None and longest > limit:
        raise InputError(
            f"data.max_length={max_length}: a row has {longest} tokens, and the model has learned {limit} positions; "
            f"set data.max_length={limit}"
        )
