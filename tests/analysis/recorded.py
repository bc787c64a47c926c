"""A sweep's summary from curves, as the controller makes it: metrics on disk, records of trials, then the result."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrsweep.analysis.priors import Prior
from lrsweep.analysis.ranking import Role, Status
from lrsweep.config import search_space
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.files.paths import SweepFolder
from lrsweep.files.row_losses import RowLosses, write_row_losses
from lrsweep.report.summary import About, Links, Summary, summarise
from lrsweep.search.records import Record, TrialSpec
from lrsweep.tracking import DatasetInfo

RECORDED = Path(__file__).parent.parent / "fixtures" / "verdict"


@dataclass(frozen=True)
class Trained:
    """A finished trial: its rate, its eval losses by step, its training losses by step, and how it ended."""

    lr: float
    evals: Sequence[tuple[int, float]]
    losses: Sequence[tuple[int, float]] = ()
    status: Status = "complete"
    role: Role = "search"
    of: int | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    rows: RowLosses | None = None


def summary_of(
    trials: Sequence[Trained], steps: int, prior: Prior | None = None, *overrides: str, seconds: float = 0.0
) -> Summary:
    """The summary of a sweep over the trials' learning rates, written into the working folder."""
    lrs = sorted({trial.lr for trial in trials if trial.role == "search"})
    own = ("name=recorded", f"training.max_steps={steps}", f"space.optimizer.lr={lrs}", *overrides)
    config = sweep_config(["+sweep=lora_lr", "search=grid", *own])
    every = sorted({trial.lr for trial in trials})
    axes = search_space.with_more_lrs(search_space.axes(config), [lr for lr in every if lr not in lrs])
    folder = SweepFolder("recorded")
    folder.create()
    records = []
    for number, trial in enumerate(trials):
        rows: dict[int, dict[str, float]] = {}
        for name, points in (("loss", trial.losses), ("eval_loss", trial.evals)):
            for step, value in points:
                rows.setdefault(step, {})[name] = value
        folder.trial(number).mkdir(parents=True, exist_ok=True)
        text = "".join(
            json.dumps({"step": step, "learning_rate": trial.lr, **rows[step]}) + "\n" for step in sorted(rows)
        )
        (folder.trial(number) / "metrics.jsonl").write_text(text)
        if trial.rows is not None:
            write_row_losses(folder.trial(number), trial.rows)
        last = trial.evals[-1]
        spec = TrialSpec({"optimizer.lr": trial.lr}, trial.role, dict(trial.overrides), trial.of)
        loss = None if trial.status == "diverged" else last[1]
        records.append(Record(number, spec, trial.status, last[0], loss, "" if loss is not None else "loss is nan"))
    eval_rows = next((len(trial.rows.tokens) for trial in trials if trial.rows is not None), 64)
    about = About(DatasetInfo("", "", "", 100, eval_rows), Links("", ""), prior, seconds=seconds)
    return summarise(config, axes, records, folder, about)


def recorded(name: str) -> list[Trained]:
    """The trials of a recorded sweep."""
    tree = json.loads((RECORDED / f"{name}.json").read_text())
    return [Trained(t["lr"], t["eval_loss"], t["loss"], role=t["role"]) for t in tree["trials"]]
