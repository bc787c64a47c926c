"""`lrsweep.diagnose`: the diagnosis of a loss curve that a program already has."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrsweep.analysis.diagnosis import Curve, Diagnosis, curve
from lrsweep.analysis.diagnosis import diagnose as diagnose_curve

Rows = Iterable[Mapping[str, Any]]


def diagnose(
    log_history: Rows | str | Path,
    others: Sequence[Rows | str | Path] = (),
    *,
    weight_decay: float | None = None,
) -> Diagnosis:
    """Diagnoses a run's loss curve: one label, the evidence, and what to change.

    Args:
        log_history: `trainer.state.log_history`, or any rows with `step` and some of `loss`, `eval_loss`,
            `learning_rate` and `grad_norm`; or a log file that `lrsweep diagnose` reads.
        others: Other runs of the same task at other rates, which make the diagnosis surer.
        weight_decay: The run's weight decay; None if it is not known.

    Raises:
        InputError: A file cannot be read.
    """
    return diagnose_curve(_curve(log_history, weight_decay), [_curve(other) for other in others])


def _curve(given: Rows | str | Path, weight_decay: float | None = None) -> Curve:
    if isinstance(given, str | Path):
        from lrsweep.analysis import log_readers
        from lrsweep.tracking import run_history

        return log_readers.read(str(given), run_history)
    return curve(given, weight_decay)
