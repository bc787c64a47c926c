"""What this process may use: GPUs as CUDA reads its variable, CPUs by affinity."""

import subprocess
import sys

import pytest

from lrsweep import hardware


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [
        ("0,1", ["0", "1"]),
        (" 2 , 0 ", ["2", "0"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("none", []),
        ("NoDevFiles", []),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,1", ["GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "1"]),
        ("MIG-GPU-8932f937-d72c/1/0", ["MIG-GPU-8932f937-d72c/1/0"]),
    ],
)
def test_an_entry_that_names_no_gpu_hides_it_and_all_after_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, gpus: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert hardware.gpus() == gpus


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_cpus_are_those_of_the_process_not_of_the_machine() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from lrsweep.hardware import cpu_count; print(cpu_count())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
