"""A stock Trainer whose checkpoints are lrsweep's: tensors and JSON, never pickles."""

import dataclasses
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerControl, TrainerState

from lrsweep.files import checkpoint
from lrsweep.files.checkpoint import Checkpoint
from lrsweep.training.engines import Trial
from lrsweep.training.engines.checkpointing import trial_digest

ENGINE = "trainer"
# transformers' name for the one file of its own that it asks for.
_STATE_FILE = "trainer_state.json"


class ResumableTrainer(Trainer):
    """Stock, but for what it saves and loads. `control.should_save` has it save into the trial's folder."""

    def __init__(self, *, trial: Trial, **stock: Any) -> None:
        super().__init__(**stock)
        self.control: TrainerControl
        self.state: TrainerState
        self._own_trial = trial
        self._kept: Checkpoint | None = None

    def train_from(self, kept: Checkpoint | None) -> None:
        """Trains to the end, from the beginning or from where the checkpoint left it: to the bit the same, on a CPU."""
        if kept is None:
            self.train()
            return
        self._kept = kept
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _STATE_FILE).write_text(kept.state["trainer"], encoding="utf-8")
            self.train(resume_from_checkpoint=folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        digest = trial_digest(self._own_trial.config)
        checkpoint.save(self._own_trial.folder, Checkpoint(ENGINE, digest, self.state.global_step, self._captured()))

    def _captured(self) -> dict[str, Any]:
        return {
            "weights": {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.lr_scheduler.state_dict(),
            "random": _random_state(),
            "trainer": json.dumps(dataclasses.asdict(self.state)),
        }

    # What stock reads from files; the folder's name says nothing here.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        assert self._kept is not None
        weights = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in self._kept.state["weights"].items():
                weights[name].copy_(weight)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._kept is not None:
            self.optimizer.load_state_dict(self._kept.state["optimizer"])
            self.lr_scheduler.load_state_dict(self._kept.state["schedule"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._kept is not None:
            _set_random_state(self._kept.state["random"])


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.tensor(np.asarray(keys, dtype=np.int64)), *rest),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
