"""A first guess of the learning rate from published measurements, and a check of the guess against the sweep's result.

A prior is only a guess. It is one more trial of a sweep, and the sweep shows whether it was right. Some versions of the
formula's source, get_lr of tinker-cookbook (https://github.com/thinking-machines-lab/tinker-cookbook), also hold a
table of swept rates: 3e-4 for Llama 3.1 8B, where the formula gives 2.9e-4, and 1e-3 for Qwen3 8B, where it gives
4.7e-4.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from lrsweep.analysis.verdict import Verdict
from lrsweep.config.schema import SweepConfig
from lrsweep.config.trial_schema import ModelConfig
from lrsweep.embedded import folder_of
from lrsweep.formatting import format_factor

_TINKER = (
    "the formula of tinker-cookbook's get_lr, fitted to LoRA runs of Llama and Qwen at batch size 128 and alpha 32"
)
_SQRT = "square-root scaling of Adam's lr with the batch size, from 128, the batch size of those runs"

# The formula's constants: the lr of full fine-tuning, and the factor for LoRA.
FULL_LR = 5e-5
LORA_FACTOR = 10.0
REFERENCE_HIDDEN, REFERENCE_BATCH = 2000, 128
# The lr falls with the hidden size to this power, by the start of the model type. Other models were not fitted: no
# trend.
SIZE_POWERS = {"llama": 0.781, "qwen": 0.0775}
# The size of Adam's updates is about the lr, whatever the gradients; the numbers do not apply to other optimizers.
ADAM_KINDS = ("adamw", "adam", "nadam", "radam", "adamax")
# A guess within this factor of the recommended lr is at most one rung off on the ladder 1e-5, 3e-5, 1e-4.
NEAR = 3.0


@dataclass(frozen=True)
class Factor:
    """One factor of a prior.

    Attributes:
        name: What the factor stands for.
        value: The factor.
        source: Where the number comes from.
    """

    name: str
    value: float
    source: str


@dataclass(frozen=True)
class Prior:
    """A first guess of the learning rate.

    Attributes:
        lr: The learning rate, rounded to two significant digits.
        factors: The factors whose product it is.
    """

    lr: float
    factors: tuple[Factor, ...]


@dataclass(frozen=True)
class PriorCheck:
    """A prior compared with the result of a sweep.

    Attributes:
        right: Whether the prior was right; None if the sweep does not show it.
        ratio: The prior's learning rate divided by the recommended one.
        text: A clause that completes "The rule of thumb ...".
    """

    right: bool | None
    ratio: float
    text: str


def applies(config: SweepConfig) -> bool:
    """Returns whether the prior applies to the config's optimizer."""
    return config.optimizer.name in ADAM_KINDS


def prior(config: SweepConfig, hidden_size: int, model_type: str) -> Prior:
    """Returns the prior 5e-5 x (10 for LoRA) x (2000 / hidden size)^p x sqrt(batch / 128).

    The batch is the number of rows in one optimizer step, on one device. p is 0.781 for Llama, 0.0775 for Qwen, and 0
    for other models. `Factor.source` names the source of each factor.

    Args:
        config: The sweep's base config.
        hidden_size: The model's hidden size.
        model_type: transformers' model type, such as `llama` or `qwen2`.
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


def read_size(model: ModelConfig) -> tuple[int, str] | None:
    """Reads the hidden size and the model type from the model's config.json, without torch or transformers.

    Returns:
        Hidden size and model type; None for a hub id, or if the file does not hold them.
    """
    folder = Path(folder_of(model.path))
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    # A multimodal model has its language model's numbers under text_config; GPT-2 and others use other names.
    text = config.get("text_config")
    places = [config, text] if isinstance(text, dict) else [config]
    sizes = [place[key] for place in places for key in ("hidden_size", "n_embd", "d_model") if key in place]
    hidden = next((size for size in sizes if isinstance(size, int) and not isinstance(size, bool) and size > 0), None)
    kind = config.get("model_type")
    return None if hidden is None or not isinstance(kind, str) else (hidden, kind)


def check(prior: Prior, verdict: Verdict) -> PriorCheck:
    """Checks a prior: it is right within a factor of 3 of the recommended learning rate, or in the safe range.

    Args:
        prior: The prior.
        verdict: The sweep's verdict, with a recommended trial.
    """
    assert verdict.best is not None
    recommended_lr, safe_range = verdict.best.lr, verdict.safe_range
    ratio = prior.lr / recommended_lr
    if verdict.inconclusive:
        return PriorCheck(None, ratio, f"says {prior.lr:g}; the sweep is inconclusive, so it shows no more")
    if math.isclose(ratio, 1.0, rel_tol=0.01):
        return PriorCheck(True, ratio, f"was right: its own rate, {prior.lr:g}, is the best")
    # The tolerance is for rounding: a prior on the next rung may be a factor of 3 away.
    near = max(ratio, 1 / ratio) <= NEAR * 1.001
    if near:
        return PriorCheck(
            True, ratio, f"was right: {prior.lr:g} is within a factor of {NEAR:g} of {recommended_lr:.4g}"
        )
    if safe_range is not None and prior.lr in safe_range:
        return PriorCheck(
            True, ratio, f"was right: {prior.lr:g} is in the safe range {safe_range.low:.4g} to {safe_range.high:.4g}"
        )
    factor, side = (ratio, "high") if ratio > 1 else (1 / ratio, "low")
    return PriorCheck(
        False,
        ratio,
        f"was off: {prior.lr:g} is {format_factor(factor)} times too {side}; the best is {recommended_lr:.4g}",
    )


def _two_digits(lr: float) -> float:
    return float(f"{lr:.2g}")
