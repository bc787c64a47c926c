"""The embedded default: a small base model and a task for it. With it a sweep runs anywhere, without a download."""

from pathlib import Path

BASE = Path(__file__).parent / "base"
"""The base model's folder: safetensors weights, config, tokenizer, model card and pretraining log."""
