"""The rows of a log under transformers' names: other programs' names, numbers as text, nulls, logs without steps."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]

# Other programs' names for what transformers calls step, loss, eval_loss, learning_rate and grad_norm.
NAMES = {
    # The first generation of LLaMA-Factory.
    "current_steps": "step",
    "lr": "learning_rate",
    # Other trainers, TensorBoard, W&B and MLflow.
    "Step": "step",
    "global_step": "step",
    "trainer/global_step": "step",
    "_step": "step",
    # fairseq.
    "num_updates": "step",
    "iter": "step",
    "iteration": "step",
    "train_loss": "loss",
    "train_loss_step": "loss",
    "train_lr": "learning_rate",
    "training_loss": "loss",
    "tloss": "loss",
    "vloss": "eval_loss",
    "losses": "loss",
    # Tinker's cookbook.
    "train_mean_nll": "loss",
    "test/nll": "eval_loss",
    "val_loss": "eval_loss",
    "valid_loss": "eval_loss",
    "validation_loss": "eval_loss",
    "test_loss": "eval_loss",
    "dev_loss": "eval_loss",
    # Lightning's mean over an evaluation; its val_loss_step is a single batch's.
    "val_loss_epoch": "eval_loss",
    "valid_loss_epoch": "eval_loss",
    "validation_loss_epoch": "eval_loss",
    "val_acc_epoch": "eval_accuracy",
    "gradient_norm": "grad_norm",
    "train_acc": "accuracy",
    "train_accuracy": "accuracy",
    "training_accuracy": "accuracy",
    "val_acc": "eval_accuracy",
    "val_accuracy": "eval_accuracy",
    "valid_acc": "eval_accuracy",
    "valid_accuracy": "eval_accuracy",
    "validation_accuracy": "eval_accuracy",
    "test_acc": "eval_accuracy",
    "test_accuracy": "eval_accuracy",
}
# `train/loss` and `eval/loss`: the part before the slash says which loss it is.
_TRAIN, _EVAL = ("train", "training"), ("eval", "val", "valid", "validation", "dev")
# A run's own step beats W&B's `_step`, which counts calls of its logger.
_STEPS = ("step", "current_steps", "global_step", "trainer/global_step", "Step", "iter", "iteration", "_step")
# The last row of a transformers log has the mean loss of the whole run as train_loss. TensorBoard and MLflow have that
# in a row of its own. A log that counts tokens has the runtime in every row.
_FINAL = "train_runtime"
_MEAN = ("train_loss", "train/train_loss")
_PLAIN = ("loss", "train/loss")
_MEASURES = ("loss", "eval_loss", "learning_rate", "grad_norm")


def name(key: str) -> str:
    """Returns transformers' name for another program's key; the key itself if it has none."""
    if key in NAMES:
        return NAMES[key]
    head, slash, tail = key.partition("/")
    if slash and head in _TRAIN:
        return NAMES.get(tail, tail)
    if slash and head in _EVAL:
        return f"eval_{tail.replace('/', '_') if tail.endswith('loss') else tail}"
    return key


def column(header: str) -> str:
    """Returns a column's header as a key: `Validation Loss` and `Validation-Loss` as validation_loss."""
    return header.strip().lower().replace(" ", "_").replace("-", "_")


def number(value: Any) -> float | None:
    """Returns a number that may be text, such as "1.25" or "NaN"; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:
        return math.inf


def normalised(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Yields rows under transformers' names, with numbers for all that is one, and a step in each if possible."""
    given = list(rows)
    if any(key in raw for raw in given for key in _PLAIN):
        given = [{key: value for key, value in raw.items() if key not in _MEAN} for raw in given]
    found = [_renamed(raw) for raw in given]
    # Nothing but nulls is NaN as well, unless evaluations say otherwise.
    nulls = [any(name(key) == "loss" and value is None for key, value in raw.items()) for raw in given]
    if given and all(nulls) and not any("eval_loss" in row for row in found):
        found = [{**row, "loss": math.nan} for row in found]
    if not any("loss" in row or "eval_loss" in row for row in found):
        _rename_only_loss(found)
        for row in found:
            _sum_parts(row)
    if _steps_of_epochs(found):
        for row in found:
            row.pop("step", None)
    counter = _StepCounter()
    step: float | None = None
    has_steps = any("step" in row and ("loss" in row or "eval_loss" in row) for row in found)
    for row in found:
        step = row.get("step", step)
        if has_steps and step is not None:
            row.setdefault("step", step)
        elif not has_steps:
            counter.add_step(row)
        yield row


def _rename_only_loss(rows: Sequence[Row]) -> None:
    """A log with one loss of training and one of evaluation, under names of its own: train_closs and val_closs."""
    # transformers' eval_NAME_loss stays the loss of the eval set NAME.
    for ours, parts in (("loss", _TRAIN), ("eval_loss", _EVAL[1:])):
        starts = tuple(f"{part}_" for part in parts)
        own = {key for row in rows for key in row if "loss" in key and key.startswith(starts)}
        if len(own) == 1:
            (key,) = own
            for row in rows:
                if key in row:
                    row[ours] = row.pop(key)


def _sum_parts(row: Row) -> None:
    """Adds the losses that detectors log in parts only: box_loss, cls_loss and so on."""
    for total, prefix in (("loss", ""), ("eval_loss", "eval_")):
        parts = [
            value
            for key, value in row.items()
            if key.endswith("_loss") and key.startswith("eval_") == bool(prefix) and isinstance(value, float)
        ]
        if len(parts) > 1:
            row[total] = sum(parts)


def _steps_of_epochs(rows: list[Row]) -> bool:
    """Returns whether steps begin again with each epoch, so that they are no steps of the run."""
    losses = [row for row in rows if "loss" in row and "step" in row and "epoch" in row]
    return any(b["step"] < a["step"] and b["epoch"] > a["epoch"] for a, b in itertools.pairwise(losses))


def _renamed(raw: Mapping[str, Any]) -> Row:
    row: Row = {}
    final = _FINAL in raw or f"train/{_FINAL}" in raw
    for key, value in raw.items():
        if final and key in _MEAN:
            continue
        if key in _STEPS or name(key) == "step":
            continue
        found = number(value)
        ours = name(key)
        if found is not None and not (ours != key and ours in raw):
            row[ours] = found
    for key in _step_keys(raw):
        found = number(raw[key])
        if found is not None and math.isfinite(found):
            row["step"] = found
            break
    _read_nulls(raw, row)
    return row


def _step_keys(raw: Mapping[str, Any]) -> list[str]:
    named = [key for key in raw if key not in _STEPS and name(key) == "step"]
    return [*(key for key in _STEPS[:-1] if key in raw), *named, *(key for key in _STEPS[-1:] if key in raw)]


def _read_nulls(raw: Mapping[str, Any], row: Row) -> None:
    """A null loss beside a learning rate is a NaN that JSON cannot hold; other nulls are what a row does not have."""
    has_eval = any(key.startswith("eval_") and key.endswith("loss") for key in row)
    has_null = any(name(key) == "loss" and value is None for key, value in raw.items())
    if has_null and "loss" not in row and not has_eval and "learning_rate" in row:
        row["loss"] = math.nan


class _StepCounter:
    """Numbers the rows of a log without steps: training rows count up, an evaluation has the last one's number.

    If `epoch` falls, the run was resumed or started again, and the count goes back with it.
    """

    def __init__(self) -> None:
        self._epochs: list[float] = []
        self._evals_only = True
        self._last_epoch = math.nan

    def add_step(self, row: Row) -> None:
        epoch = row.get("epoch", math.nan)
        if "loss" in row or (self._evals_only and epoch != self._last_epoch):
            if self._epochs and epoch < self._epochs[-1]:
                self._epochs = [earlier for earlier in self._epochs if earlier < epoch]
            self._epochs.append(epoch)
            self._evals_only = self._evals_only and "loss" not in row
        elif not any(key.startswith("eval_") for key in row):
            return
        self._last_epoch = epoch
        row["row"] = float(len(self._epochs))
