"""What this machine has: GPUs and CPUs that this process may use, and what the kernel has killed for lack of memory."""

import contextlib
import os
import re
from pathlib import Path


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; creates no CUDA context.

    As CUDA reads that variable, the first entry that names no device hides all after it: -1 alone hides every GPU.
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


def cpu_count() -> int:
    """The CPUs that this process may use: by its affinity and its container's quota."""
    # joblib takes a moment to import.
    from joblib import cpu_count as available

    return int(available())


def oom_kills() -> int:
    """How often the kernel has killed a process because memory ran out, the container's or the machine's."""
    total = 0
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control", "/proc/vmstat"):
        with contextlib.suppress(OSError):
            counts = dict(line.split() for line in Path(path).read_text().splitlines())
            total += int(counts.get("oom_kill", 0))
    return total
