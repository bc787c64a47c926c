"""Builds the executor that a config names."""

import shutil
from collections.abc import Callable, Mapping
from typing import Literal

from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError
from lrsweep.orchestration.executors import Executor
from lrsweep.orchestration.executors.inline import InlineExecutor
from lrsweep.orchestration.executors.local import LocalExecutor
from lrsweep.orchestration.executors.ray import RayExecutor
from lrsweep.orchestration.executors.slurm import SlurmExecutor


def _build_ray(config: SweepConfig) -> Executor:
    address = config.executor.address
    if address is not None:
        _check_storage(config, f"executor.address={address}")
    return RayExecutor(config)


def _build_slurm(config: SweepConfig) -> Executor:
    wanted = config.executor.cluster
    cluster: Literal["slurm", "local", "debug"]
    cluster = ("slurm" if shutil.which("srun") else "local") if wanted == "auto" else wanted
    if cluster == "slurm":
        _check_storage(config, "executor=slurm")
    return SlurmExecutor(config, cluster)


# The executors that `executor.name` can name. Each value builds one from the sweep's config, and raises InputError for
# a config that it cannot run.
EXECUTORS: Mapping[str, Callable[[SweepConfig], Executor]] = {
    "inline": InlineExecutor,
    "local": LocalExecutor,
    "ray": _build_ray,
    "slurm": _build_slurm,
}


def check_executor(config: SweepConfig) -> None:
    """Raises InputError for an executor that does not exist."""
    name = config.executor.name
    if name not in EXECUTORS:
        raise InputError(f"executor.name={name!r}: no such executor (choices: {', '.join(EXECUTORS)})")


def build_executor(config: SweepConfig) -> Executor:
    """The executor that `executor.name` names. Raises InputError if its workers could not share the study."""
    return EXECUTORS[config.executor.name](config)


def _check_storage(config: SweepConfig, why: str) -> None:
    """Raises InputError for a SQLite study; `why` is the config key that asks for workers on several machines."""
    storage = config.search.storage
    if storage is None or storage.startswith("sqlite"):
        raise InputError(
            f"{why}: its workers run on several machines, but a SQLite file is only safe on one; set "
            "search.storage=postgresql://USER:PASSWORD@HOST/DATABASE"
        )
