"""Loads a model and its tokenizer, and selects the parameters to train. Weights are read from safetensors only."""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, prepare_model_for_kbit_training
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from lrsweep.config.trial_schema import FinetuneConfig, ModelConfig, OptimizerConfig
from lrsweep.embedded import folder_of
from lrsweep.errors import InputError
from lrsweep.training import modelscope
from lrsweep.training.lora_init import takes_from_base, with_adapter
from lrsweep.training.model_fit import (
    check_attention,
    check_causal,
    check_memory,
    check_quantized_weights,
    positions,
)
from lrsweep.training.optimizer import lr_factors
from lrsweep.training.out_of_memory import is_out_of_memory
from lrsweep.training.router import set_router
from lrsweep.training.unfrozen import unfreeze

# Trials load the base often, and each progress bar would break the terminal's display.
disable_progress_bar()


def device() -> torch.device:
    """Where trials train: the first CUDA GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(model: ModelConfig) -> torch.dtype:
    """The dtype of the computation: `auto` is bfloat16 on a GPU that supports it, and float32 elsewhere."""
    if model.dtype != "auto":
        dtype = getattr(torch, model.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype
    return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer. One without a pad token pads with EOS: attention and loss ignore padding anyway.

    Raises:
        InputError: The tokenizer cannot be loaded.
    """
    tokenizer = _loaded(AutoTokenizer, model)
    if model.special_tokens:
        known = tokenizer.get_vocab()
        for name, token in model.special_tokens.items():
            if name not in ("bos_token", "eos_token", "unk_token") or token not in known:
                raise InputError(
                    f"model.special_tokens.{name}={token}: takes a bos_token, eos_token or unk_token of the "
                    "tokenizer's vocabulary"
                )
        tokenizer.add_special_tokens(dict(model.special_tokens))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model: ModelConfig, finetune: FinetuneConfig) -> PreTrainedModel:
    """The base model on its device; `make_trainable` selects the parameters to train.

    Parameters that will be trained are float32, because bfloat16 loses small updates, unless the config says otherwise;
    a LoRA base has the dtype of the computation.

    Args:
        model: Which model, its dtype and its quantization.
        finetune: The mode decides the dtype of the parameters.

    Raises:
        InputError: The model cannot be loaded, or is not a whole causal language model.
    """
    check_quantization(model, finetune)
    compute = resolve_dtype(model)
    options: dict[str, Any] = {"dtype": _stored_dtype(model, finetune), "use_safetensors": True}
    if model.attn_implementation:
        options["attn_implementation"] = model.attn_implementation
    if model.quantization:
        options |= {"quantization_config": _quantization(model, compute), "device_map": {"": 0}}
    if model.output_router_logits:
        options["config"] = _config(model)
    with _no_load_report():
        loaded, info = _loaded(AutoModelForCausalLM, model, output_loading_info=True, **options)
    lacking = sorted(info["missing_keys"])
    if lacking and not model.quantization:
        raise InputError(
            f"model.path={model.path!r}: its weights lack {lacking[0]}, one of {len(lacking)} that would start out "
            "random; download it again, or use a causal language model"
        )
    loaded.config.use_cache = False
    if model.pad_embeddings_to_multiple_of is not None:
        _pad_embeddings(loaded, len(load_tokenizer(model)), model.pad_embeddings_to_multiple_of)
    return loaded if model.quantization else loaded.to(device())


def _pad_embeddings(model: PreTrainedModel, tokens: int, multiple: int) -> None:
    """Adds rows to the embeddings up to a multiple of tokens, drawn around the mean as transformers does."""
    rows = math.ceil(tokens / multiple) * multiple
    if model.get_input_embeddings().num_embeddings < rows:
        with torch.random.fork_rng(), _no_load_report():
            torch.manual_seed(0)  # the base is the same for all trials
            model.resize_token_embeddings(rows)


def _config(model: ModelConfig) -> Any:
    """The model's config of transformers, with what ours changes in it. Raises InputError."""
    config = _loaded(AutoConfig, model)
    set_router(model, config)
    return config


def _stored_dtype(model: ModelConfig, finetune: FinetuneConfig) -> torch.dtype:
    if finetune.pure_bf16:
        return torch.bfloat16
    compute = resolve_dtype(model)
    return compute if finetune.mode == "lora" or compute == torch.float64 else torch.float32


def make_trainable(model: PreTrainedModel, finetune: FinetuneConfig, seed: int) -> Any:
    """Selects the parameters to train; for LoRA, adds freshly initialised adapters.

    Args:
        model: The base model; it is changed in place.
        finetune: The mode and its options.
        seed: Seeds the adapters' initialisation.

    Returns:
        The model, or for LoRA the PEFT model around it.

    Raises:
        InputError: The model lacks the modules of `finetune.target_modules` or the parameters of
            `finetune.unfrozen_parameters`, or has fewer layers than `finetune.trainable_layers`.
    """
    if finetune.mode == "full":
        return model
    if finetune.unfrozen_parameters:
        unfreeze(model, finetune.unfrozen_parameters)
        return model
    if finetune.mode == "freeze":
        layers = decoder_layers(model)
        if finetune.trainable_layers > len(layers):
            raise InputError(
                f"finetune.trainable_layers={finetune.trainable_layers}: the model has {len(layers)} layers; use "
                "fewer, or finetune=full"
            )
        model.requires_grad_(False)
        layers[-finetune.trainable_layers :].requires_grad_(True)
        return model
    prepare_quantized(model)
    try:
        return with_adapter(model, lora_config(finetune), seed)
    except ValueError as fault:
        raise InputError(f"finetune.target_modules={finetune.target_modules!r}: {str(fault).splitlines()[0]}") from None


def prepare_quantized(model: PreTrainedModel) -> None:
    """Makes all that is not quantized in a quantized base float32, as PEFT advises: norms, embeddings, output layer."""
    if getattr(model, "is_quantized", False):
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def check_trainable(model: ModelConfig, finetune: FinetuneConfig, optimizer: OptimizerConfig) -> int | None:
    """Checks the model's architecture alone, without loading its weights, and runs `make_trainable` on it.

    Args:
        model: Which model.
        finetune: What is trained.
        optimizer: Each of its groups of parameters has to be among those that are trained.

    Returns:
        The most positions that the model has; None if it counts on without an end.

    Raises:
        InputError: As `make_trainable` and `lr_factors`, or the model's config cannot be loaded, it is no causal
            language model, is too large, or lacks what its quantized weights need.
    """
    check_attention(model)
    config = _config(model)
    check_quantized_weights(model, finetune, config)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"attn_implementation": model.attn_implementation} if model.attn_implementation else {}
        try:
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code, **options)
        except Exception as fault:
            raise _unloadable(model, fault) from None
        check_causal(model, skeleton)
        check_memory(model, finetune, _stored_dtype(model, finetune), skeleton)
        takes = finetune.mode == "lora" and takes_from_base(lora_config(finetune))
        # A skeleton has no weights to take from.
        plain = finetune.model_copy(update={"init_lora_weights": True}) if takes else finetune
        trained = [
            name for name, weight in make_trainable(skeleton, plain, 0).named_parameters() if weight.requires_grad
        ]
    if takes and any("lora_embedding" in name for name in trained):
        raise InputError(
            f"finetune.init_lora_weights={finetune.init_lora_weights}: takes from linear layers only, and "
            "finetune.target_modules names embeddings; leave them out"
        )
    lr_factors(trained, optimizer, finetune)
    return positions(skeleton)


def lora_config(finetune: FinetuneConfig) -> LoraConfig:
    """The config's LoRA options as PEFT's LoraConfig."""
    targets = finetune.target_modules
    return LoraConfig(
        r=finetune.r,
        # PEFT accepts a float, although its annotation is int.
        lora_alpha=finetune.alpha,
        lora_dropout=finetune.dropout,
        target_modules=list(targets) if isinstance(targets, tuple) else targets,
        use_dora=finetune.dora,
        use_rslora=finetune.rslora,
        init_lora_weights=finetune.init_lora_weights,
        task_type="CAUSAL_LM",
    )


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Makes the model recompute its activations in the backward pass, and puts it in train mode."""
    # transformers has renamed this method.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    # Models are loaded in eval mode, in which it has no effect.
    model.train()


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The model's stack of layers: its longest ModuleList."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(stacks, key=len)


def check_quantization(model: ModelConfig, finetune: FinetuneConfig) -> None:
    """A quantized base needs CUDA, bitsandbytes and LoRA. Raises InputError naming what is missing."""
    if model.quantization is None:
        return
    key = f"model.quantization={model.quantization!r}"
    if finetune.mode != "lora":
        raise InputError(f"{key}: quantized weights cannot be trained; use finetune=lora or quantization=null")
    if takes_from_base(lora_config(finetune)):
        raise InputError(
            f"finetune.init_lora_weights={finetune.init_lora_weights}: takes a part of the base's weights, and "
            "quantized ones cannot give it; set it to true, or model.quantization=null"
        )
    if not torch.cuda.is_available():
        raise InputError(f"{key}: needs a CUDA GPU, and this machine has none; set model.quantization=null")
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"{key}: needs bitsandbytes; pip install 'lrsweep[bnb]'")


def _quantization(model: ModelConfig, compute: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if model.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=model.double_quantization,
        bnb_4bit_compute_dtype=compute,
    )


@contextlib.contextmanager
def _no_load_report() -> Iterator[None]:
    """Hides transformers' table of missing weights: `load_model` raises a one-line error for those that matter."""
    library = logging.getLogger("transformers")
    before = library.level
    library.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        library.setLevel(before)


def _loaded(auto: Any, model: ModelConfig, **options: Any) -> Any:
    """What one of transformers' Auto classes loads from `model.path`. Raises InputError."""
    try:
        path = modelscope.folder(model) if model.path.startswith(modelscope.PREFIX) else folder_of(model.path)
        return auto.from_pretrained(path, revision=model.revision, trust_remote_code=model.trust_remote_code, **options)
    except (MemoryError, InputError):
        raise
    # A folder may contain anything, and the libraries that read it raise errors of any type.
    except Exception as fault:
        if is_out_of_memory(fault):
            raise
        raise _unloadable(model, fault) from None


def _unloadable(model: ModelConfig, fault: Exception) -> InputError:
    reason = next((line.strip() for line in str(fault).splitlines() if line.strip()), type(fault).__name__)
    attention = model.attn_implementation
    if attention and (attention in str(fault) or "attn" in str(fault)):
        return InputError(f"model.attn_implementation={attention!r}: {reason}")
    return InputError(f"model.path={model.path!r}: cannot be loaded: {reason}")
