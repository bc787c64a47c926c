"""`lrsweep.DiagnosisCallback`: diagnoses the curve of a running Trainer."""

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lrsweep.analysis.diagnosis import Diagnosis
from lrsweep.api.diagnose import diagnose
from lrsweep.tracking import tag_active_run

log = logging.getLogger(__name__)


class DiagnosisCallback(TrainerCallback):
    """Diagnoses the run at each evaluation, and at its end.

    A label that is new is logged, as a warning if it is a fault, with what to change. It is also kept in the Trainer's
    `state.log_history` as `diagnosis`, so in trainer_state.json, and as a tag of MLflow's run if the Trainer reports to
    MLflow.

    Attributes:
        diagnosis: The latest diagnosis; None before the first evaluation.
    """

    def __init__(self) -> None:
        self.diagnosis: Diagnosis | None = None

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Diagnoses the curve so far."""
        self._diagnose(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Diagnoses the whole curve."""
        self._diagnose(args, state)

    def _diagnose(self, args: TrainingArguments, state: TrainerState) -> None:
        before, found = self.diagnosis, diagnose(state.log_history, weight_decay=args.weight_decay)
        self.diagnosis = found
        if not state.is_world_process_zero or (before is not None and before.label == found.label):
            return
        fault = found.label not in ("healthy", "unknown")
        advice = "".join(f"; {advice.text}" for advice in found.advice[:1])
        text = f"step {state.global_step}: {found.label}: {found.evidence['reason']}{advice}"
        log.log(logging.WARNING if fault else logging.INFO, "%s", text)
        state.log_history.append({"step": state.global_step, "diagnosis": found.label})
        tag_active_run({"diagnosis": found.label})
