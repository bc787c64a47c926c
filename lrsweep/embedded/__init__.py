"""The models that need no hub: the embedded default, with its task, and SmolLM2 from a Python package."""

from pathlib import Path

from lrsweep.files.paths import expanded

BASE = Path(__file__).parent / "base"
"""The embedded model's folder: safetensors weights, config, tokenizer, model card and pretraining log."""
NO_HUB = ("embedded", "smollm2_135m")
"""The values of `model.path` that are neither a folder nor a hub id."""


def folder_of(path: str) -> str:
    """The folder or hub id that `model.path` stands for.

    Raises:
        InputError: It is `smollm2_135m`, and the packages that hold its weights are missing.
    """
    if path == "embedded":
        return str(BASE)
    if path == "smollm2_135m":
        from lrsweep.embedded import smollm2

        return str(smollm2.folder())
    return str(expanded(path))
