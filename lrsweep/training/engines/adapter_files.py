"""Writes a trained adapter as PEFT does."""

from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from lrsweep.training.lora_init import for_original_base, takes_from_base


def write_adapter(
    folder: Path, weights: Mapping[str, Tensor], config: LoraConfig, base: str, first: Mapping[str, Tensor]
) -> None:
    """Writes adapter_model.safetensors and adapter_config.json; the adapter fits the base as it was before training.

    Args:
        folder: The folder for both; it is made.
        weights: The trained weights, by the names that PEFT saves them under.
        config: The adapter's config; it is changed.
        base: The base model's path.
        first: The weights that an adapter started with that has taken from the base's weights.
    """
    if takes_from_base(config):
        weights, config = for_original_base(weights, first, config)
    config.inference_mode = True
    config.base_model_name_or_path = base
    folder.mkdir(parents=True, exist_ok=True)
    on_host = {name: weight.cpu().contiguous() for name, weight in weights.items()}
    save_file(on_host, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
