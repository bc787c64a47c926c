"""The wheel, in an empty folder: the same sweeps, the same model, and the folder's own sweeps beside them."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.conftest import SMALL

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of a fresh environment with only the wheel in it; libraries come from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel)],
        check=True,
    )
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    # Added last, and without its .pth files: this checkout's editable install stays out of sight.
    (site / "libraries.pth").write_text(f"{libraries}\n")
    return folder / "env" / "bin" / "python"


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), "-m", "lrsweep", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )


def test_the_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [str(installed), "-c", "import lrsweep; print(lrsweep.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(installed.parent.parent) in where


def test_a_sweep_runs_from_the_wheel_and_sees_own_sweeps(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /tracking: none\nspace:\n  optimizer:\n    lr: [1e-3, 3e-3]\n"
    )
    assert "mine" in run(installed, "--help", cwd=tmp_path).stdout
    small = [part for part in SMALL if part.startswith(("training.", "data."))]
    ran = run(installed, "+sweep=mine", *small, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "Best so far: optimizer.lr=0.003" in ran.stdout, "the higher of two rates is at an edge"
    assert run(installed, "+sweep=lora_lr", "--cfg", "job", cwd=tmp_path).returncode == 0
