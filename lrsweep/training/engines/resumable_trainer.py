"""transformers' Trainer with lrsweep's checkpoints: tensors and JSON, never pickles."""

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
# The only file that Trainer itself reads when it resumes.
_STATE_FILE = "trainer_state.json"


class ResumableTrainer(Trainer):
    """transformers' Trainer, except that it saves and loads lrsweep's checkpoints, in the trial's folder.

    As in Trainer, `control.should_save` makes it save one.

    Args:
        trial: The trial.
        **arguments: Trainer's own arguments.
    """

    def __init__(self, *, trial: Trial, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.control: TrainerControl
        self.state: TrainerState
        self._own_trial = trial
        self._kept: Checkpoint | None = None

    def train_from(self, kept: Checkpoint | None) -> None:
        """Trains to the end, from the start or from a checkpoint. On a CPU both give the same bits.

        Args:
            kept: The checkpoint; None starts the trial.
        """
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

    # Trainer reads the following from files in the folder; here they come from the checkpoint in memory.

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
    """The states of all random generators that training uses."""
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
