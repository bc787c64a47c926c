"""The embedded default: a small base model and a task for it. A sweep runs on any machine, without a download."""

from pathlib import Path

BASE = Path(__file__).parent / "base"
"""Folder of the base model: safetensors weights, config, tokenizer, model card, pretraining log."""
