"""A sweep of a few light trials on a disk that fails at its n-th write, as a real process."""

import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import command_line

HERE = Path(__file__).parent
TRAINER = HERE / "light_trainer.py"
SWEEP = (
    "name=disk",
    "model.path=none",
    "data=embedded",
    "engine=external",
    "engine.dialect=transformers",
    "executor=inline",
    f"engine.command='{sys.executable} {TRAINER} {{config}}'",
    "space.optimizer.lr=[1e-4,1e-3,1e-2]",
    "training.max_steps=4",
    "training.eval_every=2",
    "tracking=none",
    "search.prior=false",
)


@dataclass(frozen=True)
class Ended:
    """How a run ended. `writes` is how many it made below outputs/."""

    code: int
    stderr: str
    writes: int


def shim(folder: Path) -> Path:
    """The failing disk as a library to preload. Raises FileNotFoundError without a C compiler."""
    library = folder / "full_disk.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "full_disk.c", "-ldl"], check=True)
    return library


def run(folder: Path, library: Path, at: int = 0, error: int = errno.ENOSPC, *, once: bool = False) -> Ended:
    """Runs the sweep in `folder`. Its `at`-th write below outputs/ fails (0: none), and all after it unless `once`."""
    count = folder.parent / f"{folder.name}.count"
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "FAULT_ROOT": str(folder.resolve() / "outputs"),
        "FAULT_AT": str(at),
        "FAULT_ERRNO": str(error),
        "FAULT_COUNT": str(count),
    } | ({"FAULT_ONCE": "1"} if once else {})
    done = subprocess.run(
        command_line(*SWEEP),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Ended(done.returncode, done.stderr, int(count.read_text()) if count.exists() else 0)


def check_hurt(ended: Ended) -> None:
    """A run that met the fault: exit 4 and one line with the path; or whole, where the write was one that may fail."""
    assert ended.code in (0, 4), ended
    if ended.code == 4:
        lines = ended.stderr.strip().splitlines()
        assert len(lines) == 1, ended.stderr
        assert lines[0].startswith("lrsweep: "), ended.stderr
        assert "outputs" in lines[0], ended.stderr
