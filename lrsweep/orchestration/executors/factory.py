"""Which executor runs a sweep's workers."""

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


def _ray(config: SweepConfig) -> Executor:
    address = config.executor.address
    if address is not None:
        _check_storage(config, f"executor.address={address}")
    return RayExecutor(config)


def _slurm(config: SweepConfig) -> Executor:
    wanted = config.executor.cluster
    cluster: Literal["slurm", "local", "debug"]
    cluster = ("slurm" if shutil.which("srun") else "local") if wanted == "auto" else wanted
    if cluster == "slurm":
        _check_storage(config, "executor=slurm")
    return SlurmExecutor(config, cluster)


# The executors that `executor.name` names.
EXECUTORS: Mapping[str, Callable[[SweepConfig], Executor]] = {
    "inline": InlineExecutor,
    "local": LocalExecutor,
    "ray": _ray,
    "slurm": _slurm,
}


def check_executor(config: SweepConfig) -> None:
    """Raises InputError for an executor that does not exist."""
    name = config.executor.name
    if name not in EXECUTORS:
        raise InputError(f"executor.name={name!r}: no such executor (choices: {', '.join(EXECUTORS)})")


def build_executor(config: SweepConfig) -> Executor:
    """The executor that `executor.name` asks for. Raises InputError where its workers could not share the study."""
    return EXECUTORS[config.executor.name](config)


def _check_storage(config: SweepConfig, why: str) -> None:
    storage = config.search.storage
    if storage is None or storage.startswith("sqlite"):
        raise InputError(
            f"{why}: its workers run on several machines, but a SQLite file is safe on one only; set "
            "search.storage=postgresql://USER:PASSWORD@HOST/DATABASE"
        )
