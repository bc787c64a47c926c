"""Models with random weights, batches of random tokens, and timing."""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SEED = 0
WARM, MOST, ENOUGH_SECONDS = 3, 20, 4.0  # untimed steps; timed steps at most; seconds after which timing stops

SMALL, LARGE, TINY = "Qwen2.5-0.5B", "Llama-3.1-8B", "tiny"
CONFIGS: dict[str, PreTrainedConfig] = {
    SMALL: Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    LARGE: LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    ),
    TINY: LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    ),
}


def random_model(config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model with random weights, created on the device; the same ones for the same config."""
    torch.manual_seed(SEED)
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, attn_implementation="sdpa")
    model.config.use_cache = False
    return model


def finish() -> None:
    """Waits for the device."""
    if ON_GPU:
        torch.cuda.synchronize()


def clock() -> float:
    """The time in seconds, after the device has finished."""
    finish()
    return time.monotonic()


def timed(step: Callable[[], object]) -> float:
    """The mean seconds of a step over several, without waiting for the device between them."""
    for _ in range(WARM):
        step()
    start = clock()
    step()
    steps = int(min(max(ENOUGH_SECONDS / max(clock() - start, 1e-9), 3), MOST))
    start = clock()
    for _ in range(steps):
        step()
    return (clock() - start) / steps


def matmul_peak(size: int) -> float:
    """The FLOP/s of a bf16 matrix product."""
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / min(timed(lambda: torch.mm(a, b)) for _ in range(3))
