"""lrsweep finds the learning rate for a fine-tune: it runs short trials and exports the best config to your trainer.

From Python: `sweep` runs a sweep and returns a `SweepResult`, `load` reads one of `outputs/`, `training_arguments`
gives its best config to a Trainer, `diagnose` judges a loss curve, and `DiagnosisCallback` that of a running Trainer.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrsweep.api.callback import DiagnosisCallback
    from lrsweep.api.diagnose import diagnose
    from lrsweep.api.result import SweepResult, Trial, load, training_arguments
    from lrsweep.api.sweep import sweep

__version__ = "0.2.0.dev0"
__all__ = ["DiagnosisCallback", "SweepResult", "Trial", "diagnose", "load", "sweep", "training_arguments"]

# Where each name is defined. They are imported when they are used, so that `lrsweep --help` need not wait for them.
_MODULES = {
    "DiagnosisCallback": "lrsweep.api.callback",
    "SweepResult": "lrsweep.api.result",
    "Trial": "lrsweep.api.result",
    "diagnose": "lrsweep.api.diagnose",
    "load": "lrsweep.api.result",
    "sweep": "lrsweep.api.sweep",
    "training_arguments": "lrsweep.api.result",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lrsweep' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
