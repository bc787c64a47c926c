"""Which parameters decay: those that transformers' Trainer gives weight decay."""

import re

from torch import nn

# Importing Trainer for its `get_decay_parameter_names` would take each worker three seconds: it brings datasets, pandas
# and accelerate. The tests compare the two.
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def decayed_names(model: nn.Module) -> set[str]:
    """The names of the parameters that decay: all but biases and those of norms.

    Args:
        model: Any model; a norm is known by its name, or as torch's LayerNorm.
    """
    norms = tuple(f"{name}." for name, module in model.named_modules() if name and isinstance(module, nn.LayerNorm))
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return {name for name in names if not _UNDECAYED.search(name.lower()) and not name.startswith(norms)}
