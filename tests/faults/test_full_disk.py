"""A disk that fails: exit 4, one line that names the path, and the same command goes on once there is room."""

import errno
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from optuna import load_study

from tests.faults import disk


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler, which makes the failing disk")
    return disk.shim(tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize(
    ("error", "once", "at"),
    [(errno.ENOSPC, False, 2), (errno.ENOSPC, False, 60), (errno.EIO, True, 130)],
    ids=["full-2", "full-60", "one I/O error-130"],
)
def test_a_failing_write_is_exit_4_and_nothing_is_lost(
    error: int, once: bool, at: int, library: Path, tmp_path: Path
) -> None:
    """Three of them; the campaign (`make faults`) goes through the first 200 writes one by one."""
    hurt = disk.run(tmp_path, library, at, error, once=once)
    disk.check_hurt(hurt)
    whole = disk.run(tmp_path, library)
    assert whole.code == 0, whole.stderr
    trials = load_study(study_name="disk", storage=f"sqlite:///{tmp_path}/outputs/disk/study.db").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    assert json.loads((tmp_path / "outputs/disk/summary.json").read_text())["best"]["values"] == {"optimizer.lr": 1e-3}


def test_a_checkpoint_that_does_not_fit_names_its_folder_and_leaves_the_one_before(tmp_path: Path) -> None:
    script = (
        "import torch; from pathlib import Path; from lrsweep.files import checkpoint\n"
        "from lrsweep.errors import StorageError\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "def save(step, size):\n"
        "    state = {'weights': torch.zeros(size)}\n"
        "    checkpoint.save(folder, checkpoint.Checkpoint('packed', 'digest', step, state))\n"
        "save(1, 10)\n"
        "try:\n"
        "    save(2, 1_000_000)\n"
        "except StorageError as fault:\n"
        "    print(fault)\n"
        "print(checkpoint.load(folder, 'packed', 'digest').step)\n"
    )

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, preexec_fn=small_files
    )
    told, step = done.stdout.splitlines()
    assert told.startswith(f"disk full: {tmp_path}/checkpoint")
    assert step == "1"
