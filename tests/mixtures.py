"""Small random mixtures of experts."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, JetMoeConfig, MixtralConfig, Qwen3MoeConfig

from lrsweep.embedded import BASE

SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
}
MIXTRAL = MixtralConfig(**SIZES, num_local_experts=4, router_aux_loss_coef=0.7)
KINDS = {
    "mixtral": MIXTRAL,
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, num_experts=4, moe_intermediate_size=16, head_dim=8, router_aux_loss_coef=0.7, norm_topk_prob=True
    ),
    # The experts of the others take no float64. It calls the weight by another name.
    "jetmoe": JetMoeConfig(
        **SIZES, kv_channels=8, num_local_experts=4, aux_loss_coef=0.7, bos_token_id=1, eos_token_id=1
    ),
}


def write_mixture(kind: str, folder: Path) -> Path:
    """Writes one of `KINDS` and the embedded model's tokenizer to a folder."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(KINDS[kind]).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / name, folder)
    return folder
