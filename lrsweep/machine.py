"""What this machine has: told by `lrsweep doctor`, and kept as tags of every run."""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

import psutil
from rich.console import Console

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "optuna",
    "hydra-core",
    "mlflow",
    "bitsandbytes",
)


def tags() -> dict[str, str]:
    """Versions and the working folder's git commit, for a run's tags."""
    found = {f"version.{name}": version for name in _PACKAGES if (version := _version(name))}
    commit = _git_commit()
    return found | ({"git_commit": commit} if commit else {})


def doctor(console: Console) -> None:
    """Prints what is here, what will be used and why."""
    import torch

    from lrsweep.config import ModelConfig
    from lrsweep.finetune.model import resolve_dtype

    def line(name: str, text: str) -> None:
        console.print(f"{name:<12} {text}", highlight=False, soft_wrap=True)

    memory = psutil.virtual_memory()
    line("machine", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")
    line(
        "CPU",
        f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads; {_gb(memory.available)} of {_gb(memory.total)} free",
    )
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            line(
                f"GPU {i}",
                f"{torch.cuda.get_device_name(i)}, {_gb(free)} of {_gb(total)} free{'' if i == 0 else ' (not used)'}",
            )
        line("will use", "GPU 0: torch sees CUDA")
    else:
        why = "torch is a CPU build" if torch.version.cuda is None else "torch sees no CUDA device"
        line("will use", f"the CPU: {why}")
    dtype = str(resolve_dtype(ModelConfig(path="embedded"))).removeprefix("torch.")
    line("model.dtype", f"auto means {dtype} here")
    quantized = torch.cuda.is_available() and _version("bitsandbytes") is not None
    line("4-bit base", "yes" if quantized else "no: needs CUDA and the extra lrsweep[bnb]")
    line("engine", "auto: packed, many trials over one base; what cannot be packed goes to the trainer")
    disk = shutil.disk_usage(Path.cwd())
    line("outputs", f"{Path.cwd() / 'outputs'}, {_gb(disk.free)} free")
    store = Path.cwd() / "mlflow.db"
    line("MLflow", f"sqlite:///{store} ({'there' if store.exists() else 'made by the first sweep'})")
    line("versions", ", ".join(f"{name} {_version(name) or 'not installed'}" for name in _PACKAGES))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    answer = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; makes no CUDA context."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    return [str(i) for i in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]


def oom_kills() -> int:
    """How often the kernel has killed a process because memory ran out, the container's or the machine's."""
    total = 0
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control", "/proc/vmstat"):
        with contextlib.suppress(OSError):
            counts = dict(line.split() for line in Path(path).read_text().splitlines())
            total += int(counts.get("oom_kill", 0))
    return total
