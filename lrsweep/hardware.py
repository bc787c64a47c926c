"""This machine: its name, the GPUs and CPUs that this process may use, and the kernel's out-of-memory kills."""

import contextlib
import os
import platform
import re
import sys
from pathlib import Path


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Creates no CUDA context.

    CUDA ignores the first invalid entry and all entries after it, so `-1` hides every GPU.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]
    found: list[str] = []
    for entry in named.split(","):
        gpu = entry.strip()
        if not re.fullmatch(r"\d+|(GPU|MIG)-[0-9A-Za-z/-]+", gpu):
            break
        found.append(gpu)
    return found


def describe() -> str:
    """What this process trains on, such as `NVIDIA H100 80GB HBM3`, or `AMD EPYC, 2 cores, AVX2`.

    Call it after torch has been imported: alone, it does not import it, and knows no GPU's name then.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    count = len(gpus())
    if count:
        return f"{count} GPU{'s' * (count != 1)}"
    cores = cpu_count()
    parts = [_cpu_name(), f"{cores} core{'s' * (cores != 1)}"]
    # The instruction set that torch's kernels use; much of the speed depends on it.
    if torch is not None:
        parts.append(torch.backends.cpu.get_cpu_capability())
    return ", ".join(parts)


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def cpu_count() -> int:
    """The number of CPUs that this process may use, by its affinity and its container's quota."""
    # joblib is slow to import.
    from joblib import cpu_count as available

    return int(available())


def memory() -> int:
    """The bytes of memory that this process may use, by the machine, its container and its own limit."""
    import resource

    import psutil

    found = [int(psutil.virtual_memory().total)]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # `max`
            found.append(int(Path(path).read_text()))
    own = resource.getrlimit(resource.RLIMIT_AS)[0]
    return min([*found, *([own] if own != resource.RLIM_INFINITY else [])])


def oom_kills() -> int:
    """The number of processes that the kernel has killed because the container or the machine ran out of memory."""
    total = 0
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control", "/proc/vmstat"):
        with contextlib.suppress(OSError):
            counts = dict(line.split() for line in Path(path).read_text().splitlines())
            total += int(counts.get("oom_kill", 0))
    return total
