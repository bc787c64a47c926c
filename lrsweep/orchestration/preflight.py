"""Checks everything that the trials will need, before the sweep creates anything."""

import hashlib
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrsweep import hardware
from lrsweep.analysis import priors
from lrsweep.config import search_space
from lrsweep.config.schema import SweepConfig
from lrsweep.config.search_method import starts
from lrsweep.config.search_space import GRIDS, LR, Axis, Range
from lrsweep.errors import InputError
from lrsweep.search.samplers import GP_STARTUP
from lrsweep.tracking import DatasetInfo
from lrsweep.training.data.loading import check_paths
from lrsweep.training.engines import Engine, Trial
from lrsweep.training.engines.factory import Workload, build_engine
from lrsweep.training.model_folder import check_path
from lrsweep.training.phases import NONE, phase


def prepare(config: SweepConfig, axes: Sequence[Axis], *, look: bool) -> tuple[Engine, DatasetInfo]:
    """Checks everything that a trial will need, and builds the engine.

    Args:
        config: The sweep's config.
        axes: Its axes.
        look: Also check the gradients, which loads the model.

    Returns:
        The engine, and the facts about the data.

    Raises:
        InputError: The config, the model or the data are invalid.
    """
    if config.engine.name == "external":
        return _external(config, axes)
    check_files(config)
    # torch and transformers take seconds to import, so errors that do not need them come first.
    from lrsweep.training.gradient_check import check_gradients
    from lrsweep.training.inputs import forget_inputs, inputs
    from lrsweep.training.model import check_quantization, check_trainable
    from lrsweep.training.model_fit import check_lengths
    from lrsweep.training.optimizer import check_buildable

    check_quantization(config.model, config.finetune)
    for trial in _combinations(config, axes):
        check_buildable(trial.optimizer, trial.scheduler, trial.training.schedule_steps)
        _check_packing(trial)
    limit = check_trainable(config.model, config.finetune, config.optimizer)
    forget_inputs()
    phase("reading the data")
    _, data = inputs(config.model, config.data)
    check_lengths(limit, config.data.max_length, data)
    dataset = DatasetInfo(
        config.data.path, data.source, data.fingerprint, len(data.train), len(data.evaluation), data.dropped, data.cut
    )
    ranks = [point for axis in axes if axis.key == "finetune.r" for point in axis.ends()]
    engine = build_engine(Workload(config, max([config.finetune.r, *ranks]), _trials_of_one_worker(config, axes)))
    if look and config.search.preflight:
        lrs = [lr for axis in axes if axis.key == LR for lr in axis.ends()]
        with warnings.catch_warnings():
            # PEFT still uses a deprecated name of transformers, and there is no log file for the warning yet.
            warnings.simplefilter("ignore", FutureWarning)
            phase("loading the model, to check its gradients")
            check_gradients(config, lrs or [config.optimizer.lr])
    phase(NONE)
    return engine, dataset


def check_files(config: SweepConfig) -> None:
    """Raises InputError if the model's folder or a data file is not there. Takes no time, and imports no library."""
    if config.engine.name != "external":
        check_path(config.model)
        check_paths(config.data)


def _check_packing(config: SweepConfig) -> None:
    """Raises InputError for packed rows with flash attention.

    In transformers, it separates packed rows only in batches of one block.
    """
    attention = config.model.attn_implementation or ""
    if config.data.packing and "flash" in attention:
        raise InputError(
            f"data.packing=true: with model.attn_implementation={attention} packed rows see each other; set "
            "model.attn_implementation=sdpa, or data.packing=false"
        )


def _trials_of_one_worker(config: SweepConfig, axes: Sequence[Axis]) -> int:
    """The most trials that one worker may have at once, which limits the size of a pack."""
    workers = config.executor.workers
    count = (len(hardware.gpus()) or 1) if workers == "auto" else workers
    gridded = config.search.method in GRIDS
    trials = len(starts(config, axes)) if gridded else config.search.n_trials or 1
    share = max(1, math.ceil(trials / count))
    # Trials that are sampled at once are sampled without knowing each other's losses.
    return min(share, max(GP_STARTUP, trials // 4)) if config.search.method == "gp" else share


def _combinations(config: SweepConfig, axes: Sequence[Axis]) -> list[SweepConfig]:
    """The configs of the trials that are known from the start; for methods that know none yet, the base config."""
    if config.search.method not in GRIDS:
        return [config]
    return [search_space.trial_config(config, axes, point) for point in search_space.grid(axes)]


def _external(config: SweepConfig, axes: Sequence[Axis]) -> tuple[Engine, DatasetInfo]:
    """The engine for the user's own command, which checks model and data itself. Raises InputError."""
    from lrsweep.dialects import TRAINERS, tree, tuned
    from lrsweep.dialects.their_command import program_missing
    from lrsweep.dialects.trial_file import of_trial
    from lrsweep.files.yaml_writer import to_yaml
    from lrsweep.training.engines.external import ExternalEngine

    command, name = config.engine.command, config.engine.dialect
    if not command:
        raise InputError("engine.command: missing; give the trainer's command, as 'llamafactory-cli train {config}'")
    if "{config}" not in command:
        raise InputError(f"engine.command={command!r}: has no {{config}}, where the trial's config file goes")
    if name not in TRAINERS:
        raise InputError(f"engine.dialect={name!r}: no such dialect (choices: {', '.join(TRAINERS)})")
    dialect, searched = TRAINERS[name], {axis.key for axis in axes}

    def text(trial: Trial, output: Path) -> str:
        whole = tree(dialect, trial.config, searched | set(tuned(config, trial.config)))
        return to_yaml(of_trial(dialect, whole, trial.config, output))

    # Reports now what the dialect cannot express.
    for trial in _combinations(config, axes):
        text(Trial(0, trial, Path()), Path())
    if (missing := program_missing(command, config.engine.python)) is not None:
        raise InputError(f"engine.command: {missing}")
    gpus = hardware.gpus()
    slots = config.engine.slots
    at_once = (len(gpus) or 1) if slots == "auto" else min(slots, len(gpus)) if gpus else slots
    path = Path(config.data.path)
    content = path.read_bytes() if path.is_file() else config.data.path.encode()
    dataset = DatasetInfo(config.data.path, config.data.path, hashlib.sha256(content).hexdigest(), 0, 0)
    metric = (config.search.metric, config.search.objective.key)
    return ExternalEngine(command, text, at_once, gpus, config.engine.python, metric), dataset


def rule_of_thumb(config: SweepConfig, axes: Sequence[Axis]) -> priors.Prior | None:
    """The learning rate that rules of thumb give; None if it is not searched, or they do not apply to the model."""
    if not config.search.prior or not priors.applies(config) or all(axis.key != LR for axis in axes):
        return None
    known = priors.read_size(config.model)
    return None if known is None else priors.prior(config, *known)


def first_point(axes: Sequence[Axis], prior: priors.Prior | None) -> dict[str, Any] | None:
    """The prior as the first trial's stored value: clamped to the range, or the nearest choice."""
    axis = next((axis for axis in axes if axis.key == LR), None)
    if prior is None or axis is None:
        return None
    if isinstance(axis, Range):
        return {LR: min(max(prior.lr, axis.low), axis.high)}
    return {LR: min(axis.values, key=lambda lr: abs(math.log(lr / prior.lr)))}
