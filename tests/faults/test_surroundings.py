"""What a machine may forbid: files, processes, memory, a home. One line that names the limit, and no traceback."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import command_line

# Another user's limits count: the kernel has none for root's processes.
_AS_NOBODY = ["setpriv", "--reuid", "65534", "--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"]
_LIMITS = [
    ("-f 0", "the disk is full, or a limit forbids larger files (`ulimit -f`)"),
    ("-n 16", "this process has too many files open (`ulimit -n` shows the limit)"),
    ("-u 3", "no further process or thread may be started here (`ulimit -u` shows the limit)"),
]


def run(command: Sequence[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment or None, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(("limit", "said"), _LIMITS, ids=[limit for limit, _ in _LIMITS])
def test_a_limit_of_the_shell(limit: str, said: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    as_user = _AS_NOBODY if limit.startswith("-u") and os.getuid() == 0 else []
    if as_user and (shutil.which("setpriv") is None or run([*as_user, "true"], tmp_path).returncode):
        pytest.skip("root that cannot become another user by setpriv")
    sweep = [*command_line("+sweep=lora_lr"), "training.max_steps=2"]
    ended = run([*as_user, "bash", "-c", f'ulimit {limit}; exec "$@"', "bash", *sweep], tmp_path)
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("lrsweep: ")]
    assert said in line
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 4


def test_a_full_stdout(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    ended = run(["bash", "-c", 'exec "$@" >/dev/full', "bash", sys.executable, "-m", "lrsweep", "list"], tmp_path)
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("lrsweep: ")
    assert ended.returncode == 4


_NOWHERE = {"HOME": "/proc/nowhere", "HF_HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere"}


@pytest.mark.parametrize(
    "home",
    [
        pytest.param({"LC_ALL": "C"}, id="no home, no locale", marks=pytest.mark.thorough),
        pytest.param(_NOWHERE, id="none that can be written to"),
    ],
)
def test_without_a_home(home: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "é🙂"
    folder.mkdir()
    ended = run(
        [
            *command_line("+sweep=lora_lr"),
            "training.max_steps=2",
            "training.eval_every=1",
            "search.preflight=false",
            "data.max_eval_rows=16",
            "space.optimizer.lr=[1e-4,1e-3]",
        ],
        folder,
        PATH=os.environ["PATH"],
        **home,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (folder / "outputs" / "lora_lr" / "summary.json").is_file()


def test_names_are_written_in_one_way(tmp_path: Path) -> None:
    folder = tmp_path / "é"
    folder.mkdir()
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for where, argument in ((folder, "name=x"), (tmp_path, "data.path=é.jsonl")):
        ended = run([*command_line("+sweep=lora_lr"), argument], where, PATH=os.environ["PATH"], **ascii_only)
        assert ended.stderr == (
            "lrsweep: names that are not ASCII need UTF-8, and Python uses ascii here; set PYTHONUTF8=1\n"
        )
        assert ended.returncode == 2
        assert list(where.iterdir()) in ([], [folder])
