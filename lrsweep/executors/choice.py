"""Which executor runs a sweep's workers."""

import shutil

from lrsweep.config import SweepConfig
from lrsweep.errors import InputError
from lrsweep.executors import Executor
from lrsweep.executors.inline import Inline
from lrsweep.executors.local import Local
from lrsweep.executors.ray import Ray
from lrsweep.executors.slurm import Slurm


def executor(config: SweepConfig) -> Executor:
    """The executor that `executor.name` asks for. Raises InputError where its workers could not share the study."""
    wanted = config.executor
    if wanted.name == "inline":
        return Inline(config)
    if wanted.name == "local":
        return Local(config)
    if wanted.name == "ray":
        if wanted.address is not None:
            _check_storage(config, f"executor.address={wanted.address}")
        return Ray(config)
    cluster = ("slurm" if shutil.which("srun") else "local") if wanted.cluster == "auto" else wanted.cluster
    if cluster == "slurm":
        _check_storage(config, "executor=slurm")
    return Slurm(config, cluster)


def _check_storage(config: SweepConfig, why: str) -> None:
    storage = config.search.storage
    if storage is None or storage.startswith("sqlite"):
        raise InputError(
            f"{why}: its workers run on several machines, and a SQLite file is safe on one only; set "
            "search.storage=postgresql://USER:PASSWORD@HOST/DATABASE"
        )
