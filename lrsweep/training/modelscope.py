"""Models on ModelScope: `model.path` is then `modelscope:` and the model's id there."""

import functools
import importlib.util

from lrsweep.config.trial_schema import ModelConfig
from lrsweep.errors import InputError

PREFIX = "modelscope:"
# Weights of other formats than safetensors, which are not loaded.
_OTHER_WEIGHTS = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.msgpack", "*.h5"]


def check(model: ModelConfig) -> None:
    """Raises InputError if the package that downloads from ModelScope is missing."""
    if importlib.util.find_spec("modelscope") is None:
        raise InputError(
            f"model.path={model.path!r}: the package modelscope, which downloads it, is not installed: "
            "pip install 'lrsweep[modelscope]'"
        )


def folder(model: ModelConfig) -> str:
    """The model's folder in ModelScope's cache, which is downloaded if it is missing.

    Raises:
        InputError: The package that downloads it is missing.
    """
    check(model)
    return _downloaded(model.path.removeprefix(PREFIX), model.revision)


@functools.lru_cache(maxsize=8)
def _downloaded(name: str, revision: str | None) -> str:
    from modelscope import snapshot_download

    return str(snapshot_download(name, revision=revision, ignore_patterns=_OTHER_WEIGHTS))
