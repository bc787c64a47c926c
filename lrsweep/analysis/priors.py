"""What others have measured about learning rates, as numbers with their source: a first guess, and whether it held.

A prior is no law. It is one more trial of a sweep, and the sweep says whether it was right. The formula's own authors have
a table of swept rates in some versions of get_lr: for Llama 3.1 8B it says 3e-4 (the formula: 2.9e-4), for Qwen3 8B 1e-3
(4.7e-4).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from lrsweep.config.schema import SweepConfig
from lrsweep.config.trial_schema import ModelConfig
from lrsweep.embedded import BASE

_TINKER = "tinker-cookbook, get_lr's formula: fitted to LoRA runs on Llama and Qwen at batch 128, alpha 32"
_SQRT = "square-root scaling of Adam's lr with the batch, from the fits' batch of 128"

FULL_LR = 5e-5
LORA_FACTOR = 10.0
REFERENCE_HIDDEN, REFERENCE_BATCH = 2000, 128
# The lr falls with the hidden size to this power; model types by their first letters. Others were not fitted: no trend.
SIZE_POWERS = {"llama": 0.781, "qwen": 0.0775}
# Adam's steps are about as long as the lr, whatever the gradients; of other optimizers these numbers say nothing.
ADAM_KINDS = ("adamw", "adam", "nadam", "radam", "adamax")
# A guess this close to the recommended lr is a neighbour on the ladder 1e-5, 3e-5, 1e-4.
NEAR = 3.0


@dataclass(frozen=True)
class Factor:
    """One number that the prior is a product of, and who says so."""

    name: str
    value: float
    source: str


@dataclass(frozen=True)
class Prior:
    """A first guess of the lr, with two digits, and the factors that it is the product of."""

    lr: float
    factors: tuple[Factor, ...]


@dataclass(frozen=True)
class Held:
    """Whether a prior was right: `ratio` is the prior's lr over the recommended one, `text` a clause for people."""

    right: bool
    ratio: float
    text: str


def applies(config: SweepConfig) -> bool:
    """Whether the priors are about such an optimizer."""
    return config.optimizer.name in ADAM_KINDS


def prior(config: SweepConfig, hidden_size: int, model_type: str) -> Prior:
    """5e-5 x (10 for LoRA) x (2000 / hidden size)^p x sqrt(batch / 128): see `Factor.source` of each.

    The batch is what one optimizer step sees. `model_type` is transformers' (`llama`, `qwen2`).
    """
    power = next((power for kind, power in SIZE_POWERS.items() if model_type.lower().startswith(kind)), 0.0)
    batch = config.training.batch_size * config.training.gradient_accumulation_steps
    factors = [Factor("full fine-tuning", FULL_LR, _TINKER)]
    if config.finetune.mode == "lora":
        factors.append(Factor("LoRA", LORA_FACTOR, _TINKER))
    if power:
        size = (REFERENCE_HIDDEN / hidden_size) ** power
        factors.append(Factor(f"hidden size {hidden_size} ({model_type})", size, _TINKER))
    factors.append(Factor(f"batch of {batch} rows", math.sqrt(batch / REFERENCE_BATCH), _SQRT))
    return Prior(_two_digits(math.prod(factor.value for factor in factors)), tuple(factors))


def look(model: ModelConfig) -> tuple[int, str] | None:
    """Hidden size and model type from the model's config.json; None for a hub id, and where they are not in it.

    Imports neither torch nor transformers.
    """
    folder = BASE if model.path == "embedded" else Path(model.path).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    # A model that sees too keeps its language model's numbers one level down; GPT-2 calls them otherwise.
    text = config.get("text_config")
    places = [config, text] if isinstance(text, dict) else [config]
    sizes = [place[key] for place in places for key in ("hidden_size", "n_embd", "d_model") if key in place]
    hidden = next((size for size in sizes if isinstance(size, int) and not isinstance(size, bool) and size > 0), None)
    kind = config.get("model_type")
    return None if hidden is None or not isinstance(kind, str) else (hidden, kind)


def held(prior: Prior, recommended_lr: float, safe_range: tuple[float, float] | None = None) -> Held:
    """Whether the prior's lr lies in the range that a sweep found safe (ends included), or within 3 times of its best."""
    ratio = prior.lr / recommended_lr
    # The ladder's rungs are 3 and 3.33 apart; a rounded prior on the next rung is near.
    near = max(ratio, 1 / ratio) <= NEAR * 1.001
    safe = safe_range is not None and safe_range[0] <= prior.lr <= safe_range[1]
    if near:
        return Held(True, ratio, f"held: {prior.lr:g} is within a factor of {NEAR:g} of {recommended_lr:.4g}")
    if safe:
        assert safe_range is not None
        return Held(
            True, ratio, f"held: {prior.lr:g} lies in the safe range {safe_range[0]:.4g} to {safe_range[1]:.4g}"
        )
    factor, side = (ratio, "high") if ratio > 1 else (1 / ratio, "low")
    return Held(
        False, ratio, f"was off: {prior.lr:g} is {factor:.2g} times too {side}, the best is {recommended_lr:.4g}"
    )


def _two_digits(lr: float) -> float:
    return float(f"{lr:.2g}")
