"""A quick look at a model's folder, before any library is imported."""

from pathlib import Path

from lrsweep.config import ModelConfig
from lrsweep.errors import InputError


def check_path(model: ModelConfig) -> None:
    """A local `model.path` must be a folder with a model in safetensors; a hub id passes. Raises InputError."""
    path = Path(model.path).expanduser()
    if not path.exists():
        if model.path.startswith((".", "/", "~")) or model.path.count("/") > 1:
            raise InputError(f"model.path={model.path!r}: no such folder")
        return
    if not (path / "config.json").is_file():
        raise InputError(f"model.path={model.path!r}: not a model folder: it has no config.json")
    if not any(path.glob("*.safetensors")):
        raise InputError(f"model.path={model.path!r}: no .safetensors file there; other weight formats are not loaded")
