"""`lrsweep doctor`: shows this machine, and what a sweep will use of it."""

import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from lrsweep import hardware
from lrsweep.cli.arguments import ArgumentParser
from lrsweep.errors import StorageError
from lrsweep.files.paths import SweepFolder
from lrsweep.libraries import PACKAGES, version


def run(argv: Sequence[str]) -> int:
    """Prints one line for each fact. Raises InputError for an argument."""
    ArgumentParser("doctor", "show what this machine has and what will be used").parse_args(argv)
    import psutil
    import torch

    from lrsweep.config.trial_schema import ModelConfig
    from lrsweep.report.terminal import Terminal
    from lrsweep.training.model import resolve_dtype

    console = Terminal()

    def line(name: str, text: str) -> None:
        console.print(f"{name:<12} {text}", highlight=False, soft_wrap=True)

    memory = psutil.virtual_memory()
    line("machine", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")
    line(
        "CPU",
        f"{hardware.cpu_count()} cores usable, {torch.get_num_threads()} torch threads; "
        f"{_gb(memory.available)} of {_gb(memory.total)} free",
    )
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            line(f"GPU {i}", f"{torch.cuda.get_device_name(i)}, {_gb(free)} of {_gb(total)} free")
        line("will use", "every GPU: executor.workers=auto starts a worker on each")
    else:
        why = "torch is a CPU build" if torch.version.cuda is None else "torch sees no CUDA device"
        line("will use", f"the CPU: {why}")
    dtype = str(resolve_dtype(ModelConfig(path="embedded"))).removeprefix("torch.")
    line("model.dtype", f"auto means {dtype} here")
    quantized = torch.cuda.is_available() and version("bitsandbytes") is not None
    line("4-bit base", "yes" if quantized else "no: needs CUDA and the extra lrsweep[bnb]")
    line("engine", "auto: packed, many trials over one base; trials that cannot be packed go to the trainer")
    disk = shutil.disk_usage(Path.cwd())
    try:
        SweepFolder("doctor").check_writable()
        writable = ""
    except StorageError as fault:
        writable = f"; cannot be written: {fault}"
    line("outputs", f"{Path.cwd() / 'outputs'}, {_gb(disk.free)} free{writable}")
    store = Path.cwd() / "mlflow.db"
    line("MLflow", f"sqlite:///{store} ({'exists' if store.exists() else 'created by the first sweep'})")
    line("versions", ", ".join(f"{name} {version(name) or 'not installed'}" for name in PACKAGES))
    return 0


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
